// Adam's moments, weight decay and the update of the parameter (arXiv:1412.6980, arXiv:1711.05101).
// It must not know where the gradient came from or how anything is stored.
#pragma once

#include <cmath>
#include <string_view>

#include "element.h"
#include "fail.h"
#include "portable.h"

namespace grokfused {

struct ExpAvg {
  static constexpr StateRow kRow{"exp_avg", 1, Of::kStates, {0, true}};
  template <class Real>
  struct Value {
    Real exp_avg = 0;
    static constexpr auto kField = &Value::exp_avg;
  };
};

struct ExpAvgSq {
  static constexpr StateRow kRow{"exp_avg_sq", 1, Of::kStates, {1, false}};
  template <class Real>
  struct Value {
    Real exp_avg_sq = 0;
    static constexpr auto kField = &Value::exp_avg_sq;
  };
};

struct MaxExpAvgSq {
  static constexpr StateRow kRow{"max_exp_avg_sq", 1, Of::kStates, {3, false}};
  template <class Real>
  struct Value {
    Real max_exp_avg_sq = 0;
    static constexpr auto kField = &Value::max_exp_avg_sq;
  };
};

using Moments = StateRows<ExpAvg, ExpAvgSq>;

enum class Decay : uint8_t {
  kCoupled,    // L2 regularisation, as torch.optim.Adam: the decay passes through the moments
  kDecoupled,  // as torch.optim.AdamW: the decay acts on the parameter alone
};

template <class Element, class Scalars>
GROK_HD void apply_decay(Element& element, const Scalars& scalars, Decay decay) {
  if (decay == Decay::kCoupled)
    element.grad = element.grad + scalars.weight_decay * element.param;
  else
    element.param = element.param * scalars.param_scale;
}

struct CurrentSecondMoment {
  using States = StateRows<>;
  template <class Element>
  static GROK_HD auto choose(Element& element, bool) {
    return element.exp_avg_sq;
  }
};

// AMSGrad (arXiv:1904.09237): the denominator never shrinks.
struct LargestSecondMoment {
  using States = StateRows<MaxExpAvgSq>;
  template <class Element>
  static GROK_HD auto choose(Element& element, bool) {
    // Written so that a NaN in either is kept, as torch.maximum keeps it.
    const auto largest = element.max_exp_avg_sq, current = element.exp_avg_sq;
    element.max_exp_avg_sq = current <= largest || largest != largest ? largest : current;
    return element.max_exp_avg_sq;
  }
};

// For a kernel that asks as it runs.
struct EitherSecondMoment {
  using States = StateRows<MaxExpAvgSq>;
  template <class Element>
  static GROK_HD auto choose(Element& element, bool amsgrad) {
    return amsgrad ? LargestSecondMoment::choose(element, true) : CurrentSecondMoment::choose(element, false);
  }
};

template <class SecondMoment, class Element, class Scalars>
GROK_HD void adamw(Element& element, const Scalars& scalars, Decay decay, bool amsgrad) {
  apply_decay(element, scalars, decay);
  element.exp_avg = element.exp_avg + scalars.beta1_weight * (element.grad - element.exp_avg);
  element.exp_avg_sq =
      scalars.beta2 * element.exp_avg_sq + scalars.beta2_weight * element.grad * element.grad;
  const auto second_moment = SecondMoment::choose(element, amsgrad);
  const auto denom = std::sqrt(second_moment) * scalars.denom_scale + scalars.eps;
  element.param = element.param - scalars.step_size * element.exp_avg / denom;
}

inline Decay decay_named(std::string_view name) {
  if (name == "coupled") return Decay::kCoupled;
  if (name == "decoupled") return Decay::kDecoupled;
  fail("decay must be coupled or decoupled, got ", name);
}

template <class Use>
void with_second_moment(bool amsgrad, Use&& use) {
  if (amsgrad) return use(LargestSecondMoment{});
  return use(CurrentSecondMoment{});
}

}  // namespace grokfused
