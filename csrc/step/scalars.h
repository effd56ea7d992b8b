// The numbers that all elements of a tensor share in one step. They arrive derived and rounded
// (grokfused/scalars.py does it once, in float64); but for the loss scale, nothing here may compute them
// again.
#pragma once

#include <cstdint>

#include "portable.h"

namespace grokfused {

// One row of the op's `scalars` table: the fields, in this order, are the columns. The names and
// the order are those of grokfused.scalars.Scalars; tests/test_contract.py compares the two.
struct Scalars {
  float step;          // 1, 2, ...: what the step counter becomes; feeds the random bits
  float grad_factor;   // multiplies the stored gradient: -1 to maximize
  float alpha;         // multiplies grad_ema; 0 in the step that starts it from the gradient
  float alpha_weight;  // multiplies the gradient on its way into grad_ema
  float lamb;          // multiplies grad_ema on its way into the gradient
  float weight_decay;  // multiplies the parameter on its way into the gradient (coupled decay)
  float param_scale;   // multiplies the parameter (decoupled decay)
  float beta1_weight;  // multiplies the gradient's distance from exp_avg
  float beta2;         // multiplies exp_avg_sq
  float beta2_weight;  // multiplies the squared gradient
  float step_size;     // multiplies exp_avg: lr over its bias correction
  float denom_scale;   // multiplies sqrt(exp_avg_sq): its bias correction
  float eps;           // keeps the denominator from 0
};

constexpr int64_t kScalarCount = sizeof(Scalars) / sizeof(float);

// The numbers for gradients of a loss that was multiplied by *grad_scale (null: by nothing). Here and not
// in Python, because the scale may be known to the device alone.
GROK_HD Scalars unscaled(Scalars scalars, const float* grad_scale) {
  if (grad_scale) scalars.grad_factor = scalars.grad_factor / *grad_scale;
  return scalars;
}

}  // namespace grokfused
