// How the gradient's slow part is amplified before Adam sees it (Grokfast, arXiv:2405.20233). It
// must not know what the optimizer does with the gradient.
#pragma once

#include <string_view>

#include "element.h"
#include "fail.h"
#include "portable.h"
#include "storage.h"
#include "windows.h"

namespace grokfused {

struct NoFilter {
  static constexpr std::string_view kName = "none";
  using States = StateRows<>;
  template <class Element, class Scalars>
  static GROK_HD void apply(Element&, const Scalars&, Format) {}
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
  static constexpr std::string_view kName = "ema";
  using States = StateRows<GradEma>;
  template <class Element, class Scalars>
  static GROK_HD void apply(Element& element, const Scalars& scalars, Format) {
    element.grad_ema = scalars.alpha * element.grad_ema + scalars.alpha_weight * element.grad;
    element.grad = element.grad + scalars.lamb * element.grad_ema;
  }
};

struct GradWindow {
  static constexpr StateRow kRow{"grad_window", kWindow, Of::kWindow};
  template <class Real>
  struct Value {
    Real grad_window = 0;
    static constexpr auto kField = &Value::grad_window;
  };
};

struct GradSum {
  static constexpr StateRow kRow{"grad_sum", 1, Of::kReal};
  template <class Real>
  struct Value {
    Real grad_sum = 0;
    static constexpr auto kField = &Value::grad_sum;
  };
};

// s = the sum of the last gradients;  g = g + lamb / w * s  (algorithm 1, Grokfast-MA). The sum comes without
// the gradient that leaves (windows.h).
struct Mean {
  static constexpr std::string_view kName = "mean";
  using States = StateRows<GradWindow, GradSum>;
  template <class Element, class Scalars>
  static GROK_HD void apply(Element& element, const Scalars& scalars, Format window) {
    element.grad_window = as_stored(element.grad, window);
    element.grad_sum = added(element.grad_sum, element.grad_window);
    element.grad = scalars.lamb != 0 ? element.grad + scalars.lamb * element.grad_sum : element.grad;
  }
};

template <class Use>
void with_grad_filter(std::string_view name, Use&& use) {
  if (name == NoFilter::kName) return use(NoFilter{});
  if (name == Ema::kName) return use(Ema{});
  if (name == Mean::kName) return use(Mean{});
  fail("there are no loops for grad_filter=", name);
}

}  // namespace grokfused
