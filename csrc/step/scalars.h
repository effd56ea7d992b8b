// The numbers that all elements of a tensor share in one step: derived once, in float64, and rounded once.
// But for the loss scale, no kernel may compute them again.
#pragma once

#include <cmath>
#include <cstdint>

#include "portable.h"

namespace grokfused {

// One row of the table of scalars: the fields, in this order, are the columns. The names and the order are
// those of grokfused.backends.reference.Scalars; tests/test_contract.py compares the two. In float64 for
// parameters of float64, else in float32.
template <class Real>
struct ScalarsOf {
  Real step;          // 1, 2, ...: what the step counter becomes; feeds the random bits
  Real grad_factor;   // multiplies the stored gradient: -1 to maximize
  Real alpha;         // multiplies grad_ema; 0 in the step that starts it from the gradient
  Real alpha_weight;  // multiplies the gradient on its way into grad_ema
  Real lamb;          // multiplies the filter's memory on its way into the gradient
  Real weight_decay;  // multiplies the parameter on its way into the gradient (coupled decay)
  Real param_scale;   // multiplies the parameter (decoupled decay)
  Real beta1_weight;  // multiplies the gradient's distance from exp_avg
  Real beta2;         // multiplies exp_avg_sq
  Real beta2_weight;  // multiplies the squared gradient
  Real step_size;     // multiplies exp_avg: lr over its bias correction
  Real denom_scale;   // multiplies sqrt(exp_avg_sq): its bias correction
  Real eps;           // keeps the denominator from 0
};

using Scalars = ScalarsOf<float>;
constexpr int64_t kScalarCount = sizeof(Scalars) / sizeof(float);

// A group's. grad_factor: -1 to maximize, else 1.
struct Hyperparameters {
  double lr, beta1, beta2, eps, weight_decay, alpha, lamb, grad_factor;
};

// When a filter amplifies, and by which part of lamb: the truth is grokfused/step/grad_filter.py.
struct Gate {
  double window;        // how many gradients it remembers, each of weight 1; 1 where that is no sum
  double full_only;     // not 0: it amplifies only once it has seen so many
  double summed;        // not 0: lamb multiplies the sum; else the mean
  double after, until;  // it amplifies in the steps beyond the one, up to the other

  // What lamb is divided by in a step, of which the memory has seen those from `first` on.
  GROK_HD double divisor(double step, double first) const {
    const double seen = step - first + 1.0;
    const bool amplifies = after < step && step <= until && seen >= (full_only != 0 ? window : 1.0);
    const double length = summed != 0 ? 1.0 : seen < window ? seen : window;
    return amplifies ? length : HUGE_VAL;
  }
};

// The numbers of step 1, 2, ...; in `first` the slow gradient starts as the gradient itself. The truth is
// derive() in grokfused/step/scalars.py, for all values that a group may hold; here betas and alpha are in
// [0, 1).
GROK_HD ScalarsOf<double> derive(const Hyperparameters& of, const Gate& gate, double step, double first) {
  const double alpha = step == first ? 0.0 : of.alpha;
  ScalarsOf<double> scalars;
  scalars.step = step;
  scalars.grad_factor = of.grad_factor;
  scalars.alpha = alpha;
  scalars.alpha_weight = 1.0 - alpha;
  scalars.lamb = of.lamb / gate.divisor(step, first);
  scalars.weight_decay = of.weight_decay;
  scalars.param_scale = 1.0 - of.lr * of.weight_decay;
  scalars.beta1_weight = 1.0 - of.beta1;
  scalars.beta2 = of.beta2;
  scalars.beta2_weight = 1.0 - of.beta2;
  scalars.step_size = of.lr / (1.0 - std::pow(of.beta1, step));
  scalars.denom_scale = 1.0 / std::sqrt(1.0 - std::pow(of.beta2, step));
  scalars.eps = of.eps;
  return scalars;
}

// The numbers for gradients of a loss that was multiplied by *grad_scale (null: by nothing). Here and not
// in Python, because the scale may be known to the device alone.
template <class Real>
GROK_HD ScalarsOf<Real> unscaled(ScalarsOf<Real> scalars, const Real* grad_scale) {
  if (grad_scale) scalars.grad_factor = scalars.grad_factor / *grad_scale;
  return scalars;
}

// What divides gradients that were multiplied by loss_scale, and then have this norm, so that in true units
// it is max_norm at most. The truth is divisor() in grokfused/step/clipping.py; a NaN stays one.
template <class Real>
GROK_HD Real clipping_divisor(Real norm, Real loss_scale, Real max_norm) {
  const Real coefficient = Real{1} / (norm / loss_scale + static_cast<Real>(1e-6)) * max_norm;
  return loss_scale / (coefficient > Real{1} ? Real{1} : coefficient);
}

}  // namespace grokfused
