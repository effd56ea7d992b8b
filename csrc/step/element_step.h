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

namespace grokfused {

template <class GradFilter, class SecondMoment>
struct ElementStep {
  using States = decltype(Moments{} + typename SecondMoment::States{} + typename GradFilter::States{});
  static_assert(States::kCount + 1 <= kMaxStates, "with KahanComp they are the states of a Slice");

  template <class Real>
  static GROK_HD void run(Element<Real, States>& element, const ScalarsOf<Real>& scalars, Decay decay) {
    element.grad = element.grad * scalars.grad_factor;
    GradFilter::apply(element, scalars);
    adamw<SecondMoment>(element, scalars, decay);
  }
};

// The names that select a step.
struct Policies {
  std::string_view param_dtype, state_dtype, state_rounding, param_rounding, grad_filter, decay;
  bool amsgrad;
};

// Of these names, what is the same for all elements of a call, so that a kernel may ask for it as it runs.
struct Choices {
  Format param, state;
  Rounding param_rounding, state_rounding;
  Decay decay;

  GROK_HD bool keeps_rest() const { return param_rounding == Rounding::kKahan; }
  bool operator==(const Choices& other) const {
    return param == other.param && state == other.state && param_rounding == other.param_rounding &&
           state_rounding == other.state_rounding && decay == other.decay;
  }
};

inline Choices choices_of(const Policies& names) {
  const Format param = param_format_named(names.param_dtype);
  const Format state = state_format_named(names.state_dtype, param);
  return {param, state, param_rounding_named(names.param_rounding, param),
          state_rounding_named(names.state_rounding, state), decay_named(names.decay)};
}

template <class Use>
void with_element_step(const Policies& names, Use&& use) {
  with_grad_filter(names.grad_filter, [&](auto filter) {
    with_second_moment(names.amsgrad, [&](auto second_moment) {
      use(ElementStep<decltype(filter), decltype(second_moment)>{});
    });
  });
}

}  // namespace grokfused
