// Adam's moments, weight decay and the update of the parameter (arXiv:1412.6980, arXiv:1711.05101).
// It must not know where the gradient came from or how anything is stored.
#pragma once

#include <cmath>
#include <string_view>

#include "element.h"
#include "fail.h"
#include "portable.h"
#include "scalars.h"

namespace grokfused {

// L2 regularisation, as torch.optim.Adam: the decay passes through the moments.
struct CoupledDecay {
  static GROK_HD void apply(Element& element, const Scalars& scalars) {
    element.grad = element.grad + scalars.weight_decay * element.param;
  }
};

// As torch.optim.AdamW: the decay acts on the parameter alone.
struct DecoupledDecay {
  static GROK_HD void apply(Element& element, const Scalars& scalars) {
    element.param = element.param * scalars.param_scale;
  }
};

struct CurrentSecondMoment {
  static constexpr bool kUsesMax = false;
  static GROK_HD float choose(Element& element) { return element.exp_avg_sq; }
};

// AMSGrad (arXiv:1904.09237): the denominator never shrinks.
struct LargestSecondMoment {
  static constexpr bool kUsesMax = true;
  static GROK_HD float choose(Element& element) {
    // Written so that a NaN in either is kept, as torch.maximum keeps it.
    const float largest = element.max_exp_avg_sq, current = element.exp_avg_sq;
    element.max_exp_avg_sq = current <= largest || largest != largest ? largest : current;
    return element.max_exp_avg_sq;
  }
};

template <class Decay, class SecondMoment>
GROK_HD void adamw(Element& element, const Scalars& scalars) {
  Decay::apply(element, scalars);
  element.exp_avg = element.exp_avg + scalars.beta1_weight * (element.grad - element.exp_avg);
  element.exp_avg_sq =
      scalars.beta2 * element.exp_avg_sq + scalars.beta2_weight * element.grad * element.grad;
  const float denom = std::sqrt(SecondMoment::choose(element)) * scalars.denom_scale + scalars.eps;
  element.param = element.param - scalars.step_size * element.exp_avg / denom;
}

template <class Use>
void with_decay(std::string_view name, Use&& use) {
  if (name == "coupled") return use(CoupledDecay{});
  if (name == "decoupled") return use(DecoupledDecay{});
  fail("decay must be coupled or decoupled, got ", name);
}

template <class Use>
void with_second_moment(bool amsgrad, Use&& use) {
  if (amsgrad) return use(LargestSecondMoment{});
  return use(CurrentSecondMoment{});
}

}  // namespace grokfused
