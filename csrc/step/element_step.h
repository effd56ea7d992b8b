// The order of the rooms: read, filter the gradient, AdamW, write. The whole algorithm on one
// screen.
#pragma once

#include "adamw.h"
#include "element.h"
#include "grad_filter.h"
#include "scalars.h"
#include "slice.h"
#include "storage.h"

namespace grokfused {

template <class ParamStorage, class StateStorage, class GradFilter, class Decay, class SecondMoment>
struct ElementStep {
  using Param = ParamStorage;
  using State = StateStorage;
  static constexpr bool kUsesEma = GradFilter::kUsesEma, kUsesMax = SecondMoment::kUsesMax;

  static GROK_HD Element read(const Slice& slice, int64_t i) {
    Element element;
    element.param = load<ParamStorage>(slice.param, i);
    element.grad = load<ParamStorage>(slice.grad, i);
    element.exp_avg = load<StateStorage>(slice.exp_avg, i);
    element.exp_avg_sq = load<StateStorage>(slice.exp_avg_sq, i);
    if constexpr (kUsesMax) element.max_exp_avg_sq = load<StateStorage>(slice.max_exp_avg_sq, i);
    if constexpr (kUsesEma) element.grad_ema = load<StateStorage>(slice.grad_ema, i);
    return element;
  }

  static GROK_HD void update(Element& element, const Scalars& scalars) {
    element.grad = element.grad * scalars.grad_factor;
    GradFilter::apply(element, scalars);
    adamw<Decay, SecondMoment>(element, scalars);
  }

  static GROK_HD void write(const Slice& slice, int64_t i, const Element& element) {
    // One draw for all states of an element: each is rounded without bias, and equals stay equal.
    uint32_t drawn = 0;
    if constexpr (StateStorage::kUsesRandomBits)
      drawn = random_bits(slice.random_key, slice.first + static_cast<uint32_t>(i));
    store<ParamStorage>(slice.param, i, element.param, 0);
    store<StateStorage>(slice.exp_avg, i, element.exp_avg, drawn);
    store<StateStorage>(slice.exp_avg_sq, i, element.exp_avg_sq, drawn);
    if constexpr (kUsesMax) store<StateStorage>(slice.max_exp_avg_sq, i, element.max_exp_avg_sq, drawn);
    if constexpr (kUsesEma) store<StateStorage>(slice.grad_ema, i, element.grad_ema, drawn);
  }

  // The elements from `begin` on, in the step that `key` stands for. Counted from there, indices of 32 bits
  // suffice for a loop, and the random bits need no wider ones.
  static GROK_HD Slice part(const Slice& slice, int64_t begin, int64_t size, uint32_t key) {
    Slice part = slice;
    part.param = at<ParamStorage>(slice.param, begin);
    part.grad = at<ParamStorage>(slice.grad, begin);
    part.exp_avg = at<StateStorage>(slice.exp_avg, begin);
    part.exp_avg_sq = at<StateStorage>(slice.exp_avg_sq, begin);
    if constexpr (kUsesMax) part.max_exp_avg_sq = at<StateStorage>(slice.max_exp_avg_sq, begin);
    if constexpr (kUsesEma) part.grad_ema = at<StateStorage>(slice.grad_ema, begin);
    part.size = size;
    part.random_key = key;
    part.first = slice.first + static_cast<uint32_t>(begin);
    return part;
  }

  static GROK_HD void run(const Slice& slice, int64_t i, const Scalars& scalars) {
    Element element = read(slice, i);
    update(element, scalars);
    write(slice, i, element);
  }
};

// The names that select one ElementStep.
struct Policies {
  std::string_view param_dtype, state_dtype, state_rounding, grad_filter, decay;
  bool amsgrad;
};

template <class Use>
void with_element_step(const Policies& names, Use&& use) {
  with_param_storage(names.param_dtype, [&](auto param) {
    with_state_storage(names.state_dtype, names.state_rounding, [&](auto state) {
      with_grad_filter(names.grad_filter, [&](auto filter) {
        with_decay(names.decay, [&](auto decay) {
          with_second_moment(names.amsgrad, [&](auto second_moment) {
            use(ElementStep<decltype(param), decltype(state), decltype(filter), decltype(decay),
                            decltype(second_moment)>{});
          });
        });
      });
    });
  });
}

}  // namespace grokfused
