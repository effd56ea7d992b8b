// How the gradient's slow part is amplified before Adam sees it (Grokfast, arXiv:2405.20233). It
// must not know what the optimizer does with the gradient.
#pragma once

#include <string_view>

#include "element.h"
#include "fail.h"
#include "portable.h"

namespace grokfused {

struct NoFilter {
  using States = StateRows<>;
  template <class Element, class Scalars>
  static GROK_HD void apply(Element&, const Scalars&) {}
};

struct GradEma {
  static constexpr StateRow kRow{"grad_ema"};
  template <class Real>
  struct Value {
    Real grad_ema = 0;
    static constexpr auto kField = &Value::grad_ema;
  };
};

// h = alpha * h + (1 - alpha) * g;  g = g + lamb * h  (algorithm 2, Grokfast-EMA)
struct Ema {
  using States = StateRows<GradEma>;
  template <class Element, class Scalars>
  static GROK_HD void apply(Element& element, const Scalars& scalars) {
    element.grad_ema = scalars.alpha * element.grad_ema + scalars.alpha_weight * element.grad;
    element.grad = element.grad + scalars.lamb * element.grad_ema;
  }
};

template <class Use>
void with_grad_filter(std::string_view name, Use&& use) {
  if (name == "none") return use(NoFilter{});
  if (name == "ema") return use(Ema{});
  fail("grad_filter must be none or ema, got ", name);
}

}  // namespace grokfused
