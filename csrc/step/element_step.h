// The order of the rooms: read, filter the gradient, AdamW, write where the mask allows it. The whole
// algorithm on one screen.
#pragma once

#include "adamw.h"
#include "element.h"
#include "grad_filter.h"
#include "mask.h"
#include "scalars.h"
#include "slice.h"
#include "storage.h"

namespace grokfused {

template <class ParamStorage, class StateStorage, class GradFilter, class Decay, class SecondMoment>
struct ElementStep {
  using Param = ParamStorage;
  using State = StateStorage;
  static constexpr bool kUsesEma = GradFilter::kUsesEma, kUsesMax = SecondMoment::kUsesMax;
  static constexpr bool kUsesComp = ParamStorage::kUsesComp;

  static GROK_HD Element read(const Slice& slice, int64_t i) {
    Element element;
    element.param = load<ParamStorage>(slice.param, i);
    if constexpr (kUsesComp) element.param = element.param + load<ParamStorage>(slice.kahan_comp, i);
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

  static GROK_HD void write(const Slice& slice, int64_t i, const Element& element, Where where) {
    uint32_t bits = 0;
    if constexpr (ParamStorage::kUsesRandomBits || StateStorage::kUsesRandomBits)
      bits = random_bits(slice.random_key, slice.first + static_cast<uint32_t>(i));
    const uint32_t drawn = state_draw(bits);
    store<ParamStorage>(slice.param, i, element.param, param_draw(bits), where);
    if constexpr (kUsesComp)
      store<ParamStorage>(slice.kahan_comp, i, cut_off<ParamStorage>(element.param), 0, where);
    store<StateStorage>(slice.exp_avg, i, element.exp_avg, drawn, where);
    store<StateStorage>(slice.exp_avg_sq, i, element.exp_avg_sq, drawn, where);
    if constexpr (kUsesMax)
      store<StateStorage>(slice.max_exp_avg_sq, i, element.max_exp_avg_sq, drawn, where);
    if constexpr (kUsesEma) store<StateStorage>(slice.grad_ema, i, element.grad_ema, drawn, where);
  }

  // The elements from `begin` on, in the step that `key` stands for. Counted from there, indices of 32 bits
  // suffice for a loop, and the random bits need no wider ones. The mask remains that of the slice.
  static GROK_HD Slice part(const Slice& slice, int64_t begin, int64_t size, uint32_t key) {
    Slice part = slice;
    part.grad = at<ParamStorage>(slice.grad, begin);
    each_written([&](auto array, auto storage) { part.*array = at<decltype(storage)>(slice.*array, begin); });
    part.size = size;
    part.random_key = key;
    part.first = slice.first + static_cast<uint32_t>(begin);
    return part;
  }

  // Calls use(array, storage) for every array that a step writes.
  template <class Use>
  static GROK_HD void each_written(Use&& use) {
    use(&Slice::param, ParamStorage{});
    use(&Slice::exp_avg, StateStorage{});
    use(&Slice::exp_avg_sq, StateStorage{});
    if constexpr (kUsesMax) use(&Slice::max_exp_avg_sq, StateStorage{});
    if constexpr (kUsesEma) use(&Slice::grad_ema, StateStorage{});
    if constexpr (kUsesComp) use(&Slice::kahan_comp, ParamStorage{});
  }

  static GROK_HD void run_where(const Slice& slice, int64_t i, const Scalars& scalars, Where where) {
    Element element = read(slice, i);
    update(element, scalars);
    write(slice, i, element, where);
  }

  static GROK_HD void run(const Slice& slice, int64_t i, const Scalars& scalars) {
    run_where(slice, i, scalars, Where(~uint32_t{0}, slice.mask_mode));
  }
};

// The names that select one ElementStep.
struct Policies {
  std::string_view param_dtype, state_dtype, state_rounding, param_rounding, grad_filter, decay;
  bool amsgrad;
};

// Of parameters of one format, which names.param_dtype says: so that each can be compiled by itself.
template <class Format, class Use>
void with_element_step(const Policies& names, Use&& use) {
  with_param_rounding<Format>(names.param_rounding, [&](auto param) {
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
