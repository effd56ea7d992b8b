// The order of the rooms between a read and a write: filter the gradient, AdamW. The whole algorithm on one
// screen. A CPU reads and writes tiles of elements (csrc/cpu/tile.h), a GPU packs (csrc/cuda/kernel.h), and
// both do it by storage.h, in all arrays of the rows, and write where the mask allows it.
#pragma once

#include "adamw.h"
#include "element.h"
#include "grad_filter.h"
#include "scalars.h"
#include "slice.h"
#include "storage.h"
#include "windows.h"

namespace grokfused {

// What selects a step.
struct Policies {
  std::string_view param_dtype, state_dtype, window_dtype;  // the last one empty without a window
  std::string_view state_rounding, param_rounding, grad_filter, decay;
  bool amsgrad;
  int32_t window_size;  // 0 where there is no window
};

// Of that, what is the same for all elements of a call, so that a kernel may ask for it as it runs.
struct Choices {
  Format param, state, window;
  Rounding param_rounding, state_rounding;
  Decay decay;
  bool amsgrad;
  int32_t window_size;

  GROK_HD bool keeps_rest() const { return param_rounding == Rounding::kKahan; }
  GROK_HD bool in_8_bits() const { return state == Format::kBlock8; }
};

inline Choices choices_of(const Policies& names) {
  const Format param = param_format_named(names.param_dtype);
  const Format state = state_format_named(names.state_dtype, param);
  return {param,
          state,
          names.window_dtype.empty() ? state : state_format_named(names.window_dtype, param),
          param_rounding_named(names.param_rounding, param),
          state_rounding_named(names.state_rounding, state),
          decay_named(names.decay),
          names.amsgrad,
          names.window_size};
}

template <class GradFilter, class SecondMoment>
struct ElementStep {
  using Filter = GradFilter;
  // Always there; AMSGrad's comes after them.
  using OwnStates = decltype(Moments{} + typename GradFilter::States{});
  using States = decltype(OwnStates{} + typename SecondMoment::States{});
  static_assert(OwnStates::kCount + 3 <= kMaxStates, "with the optional ones they are the states of a Slice");

  template <class Real>
  static GROK_HD void run(Element<Real, States>& element, const ScalarsOf<Real>& scalars,
                          const Choices& choices) {
    element.grad = element.grad * scalars.grad_factor;
    GradFilter::apply(element, scalars, choices.window);
    adamw<SecondMoment>(element, scalars, choices.decay, choices.amsgrad);
  }
};

}  // namespace grokfused
