// Where the elements of one tensor lie. Addresses only: what the bytes mean is storage.h's subject.
#pragma once

#include <cstdint>

#include "mask.h"

namespace grokfused {

// Element i of every array is the i-th element in memory order, the same for all arrays of a slice.
// An array that the chosen policies do not use may be null.
struct Slice {
  void* param;
  const void* grad;
  void* exp_avg;
  void* exp_avg_sq;
  void* max_exp_avg_sq;
  void* grad_ema;
  void* kahan_comp;
  const uint32_t* mask;  // a bit per element (mask.h); null where every element takes the step
  int64_t size;
  uint32_t random_key;  // of the step that is being taken; ElementStep::part sets it
  uint32_t first;       // the index in its tensor of the element at these addresses, as the random bits count
  MaskMode mask_mode;
};

}  // namespace grokfused
