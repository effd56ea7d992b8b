// One element between its read and its write: float32 values, no addresses.
#pragma once

namespace grokfused {

// A field that the chosen policies do not use stays 0 and is never written back.
struct Element {
  float param = 0;
  float grad = 0;
  float exp_avg = 0;
  float exp_avg_sq = 0;
  float max_exp_avg_sq = 0;
  float grad_ema = 0;
};

}  // namespace grokfused
