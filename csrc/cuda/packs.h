// The elements that a thread steps at once: how they are read, stepped and written. It knows no grid.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../step/element_step.h"

namespace grokfused {

constexpr int kAlignment = 16;  // bytes of the widest load there is

// A step, and in which formats its arrays are.
template <class ParamFormat, class StateFormat, class ElementStep>
struct StoredStep {
  using Param = ParamFormat;
  using State = StateFormat;
  using Step = ElementStep;
  using States = typename ElementStep::States;
  using Real = typename Param::Real;
  // Elements that a thread steps at once: 16 bytes of the widest arrays. Of those of 16 bits it moves 8, so
  // that neighbouring threads fill whole sectors of every array.
  static constexpr int kWidth = kAlignment / sizeof(Real);
  static constexpr bool kCanKeepRest = sizeof(typename Param::Stored) == 2;
};

// Values that are read or written at once: 16 bytes, 8 of those of 16 bits, or a single one.
template <class ArrayFormat, int kWidth>
struct alignas(kWidth * sizeof(typename ArrayFormat::Stored)) Pack {
  using Format = ArrayFormat;
  typename Format::Stored values[kWidth];

  static GROK_HD Pack& in(void* array, int64_t i) {
    return *reinterpret_cast<Pack*>(static_cast<typename Format::Stored*>(array) + i);
  }
  static GROK_HD const Pack& in(const void* array, int64_t i) {
    return *reinterpret_cast<const Pack*>(static_cast<const typename Format::Stored*>(array) + i);
  }
  static GROK_HD auto& at(void* array, int64_t i) { return static_cast<typename Format::Stored*>(array)[i]; }
  static GROK_HD auto at(const void* array, int64_t i) {
    return static_cast<const typename Format::Stored*>(array)[i];
  }
  GROK_HD auto widened(int k) const { return Format::widen(values[k]); }
  GROK_HD void round(int k, typename Format::Real value, Rounding rounding, uint32_t random_bits) {
    values[k] = rounded<Format>(value, rounding, random_bits);
  }
};

// How an array is stored. A shared one is of the numbers in which a step is computed.
template <class Stored, class Row>
using FormatOf = std::conditional_t<
    is_shared(Row::kRow), std::conditional_t<std::is_same_v<typename Stored::Real, double>, Float64, Float32>,
    std::conditional_t<Row::kRow.like_param, typename Stored::Param, typename Stored::State>>;

template <class Stored, class Row, int kWidth>
struct StatePack {
  Pack<FormatOf<Stored, Row>, kWidth> pack;
};

template <class Stored, class Rows, int kWidth>
struct StatePacks;

template <class Stored, class... Rows, int kWidth>
struct StatePacks<Stored, StateRows<Rows...>, kWidth> : StatePack<Stored, Rows, kWidth>... {};

// kWidth elements from one index on. All are read before the first is used, so that their loads are in flight
// together.
template <class Stored, int kWidth>
struct Packs : StatePacks<Stored, typename Stored::States, kWidth> {
  using ParamPack = Pack<typename Stored::Param, kWidth>;
  ParamPack param, grad, kahan_comp;

  template <class Row>
  GROK_HD auto& state(Row) {
    return static_cast<StatePack<Stored, Row, kWidth>&>(*this).pack;
  }

  // Calls use(pack, array) for every array of which a step writes each element.
  template <class Use>
  GROK_HD void each_written(const Slice& slice, const Choices& choices, Use&& use) {
    use(param, slice.param);
    Stored::States::each([&](auto row, int place) {
      if constexpr (!is_shared(decltype(row)::kRow)) use(state(row), slice.states[place]);
    });
    with_rest(slice, choices, use);
  }

  template <class Use>
  GROK_HD void with_rest(const Slice& slice, const Choices& choices, Use&& use) {
    if constexpr (Stored::kCanKeepRest) {
      if (!choices.keeps_rest()) return;
      void* rest = slice.states[Stored::States::kCount];
      assume_global(rest);  // once more: the compiler forgets it where branches meet
      use(kahan_comp, rest);
    }
  }

  GROK_HD void load(const Slice& slice, const Choices& choices, int64_t i) {
    grad = ParamPack::in(slice.grad, i);
    each_written(slice, choices, [&](auto& pack, const void* array) { pack = pack.in(array, i); });
  }

  GROK_HD void store(const Slice& slice, const Choices& choices, int64_t i) {
    each_written(slice, choices, [&](auto& pack, void* array) { pack.in(array, i) = pack; });
  }

  GROK_HD void step(const ScalarsOf<typename Stored::Real>& scalars, const Choices& choices,
                    uint32_t random_key, uint32_t first) {
    const bool draws =
        choices.param_rounding == Rounding::kStochastic || choices.state_rounding == Rounding::kStochastic;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      auto element = element_of(k, choices);
      Stored::Step::run(element, scalars, choices.decay);
      put(k, element, choices, draws ? random_bits(random_key, first + static_cast<uint32_t>(k)) : 0);
    }
  }

  GROK_HD auto element_of(int k, const Choices& choices) {
    Element<typename Stored::Real, typename Stored::States> element;
    element.param = param.widened(k);
    if constexpr (Stored::kCanKeepRest)
      if (choices.keeps_rest()) element.param = element.param + kahan_comp.widened(k);
    element.grad = grad.widened(k);
    Stored::States::each([&](auto row, int) { value_of<decltype(row)>(element) = state(row).widened(k); });
    return element;
  }

  template <class Element>
  GROK_HD void put(int k, Element& element, const Choices& choices, uint32_t bits) {
    param.round(k, element.param, choices.param_rounding, param_draw(bits));
    if constexpr (Stored::kCanKeepRest)
      if (choices.keeps_rest())
        kahan_comp.round(k, cut_off<typename Stored::Param>(element.param), Rounding::kNearest, 0);
    Stored::States::each([&](auto row, int) {
      state(row).round(k, value_of<decltype(row)>(element), choices.state_rounding, state_draw(bits));
    });
  }

  // Takes back, from the arrays, what the mask does not keep.
  GROK_HD void leave_out(const Slice& slice, const Choices& choices, int64_t i, uint32_t kept) {
    each_written(slice, choices, [&](auto& pack, const void* array) {
      const auto before = pack.in(array, i);
#pragma unroll
      for (int k = 0; k < kWidth; ++k)
        pack.values[k] =
            masked_stored(Where(kept_bits(kept, k), slice.mask_mode), pack.values[k], before.values[k]);
    });
  }

  // Elements of which the mask keeps none. Their states are 0 since the mask was set; their parameters are
  // looked at, because any code may write those.
  GROK_HD void clear(const Slice& slice, const Choices& choices, int64_t i) {
    if (slice.mask_mode == MaskMode::kFreeze) return;
    param = ParamPack::in(slice.param, i);
    auto bits = stored_bits(param.values[0]);
#pragma unroll
    for (int k = 1; k < kWidth; ++k) bits |= stored_bits(param.values[k]);
    if (bits == 0) return;
    each_written(slice, choices, [&](auto& pack, void* array) {
      pack = {};
      pack.in(array, i) = pack;
    });
  }

  // True when every array of the slice begins where a pack may.
  static GROK_HD bool fits(const Slice& slice, const Choices& choices) {
    uintptr_t addresses = reinterpret_cast<uintptr_t>(slice.grad);
    Packs{}.each_written(slice, choices,
                         [&](auto&, void* array) { addresses |= reinterpret_cast<uintptr_t>(array); });
    return addresses % kAlignment == 0;
  }
};

}  // namespace grokfused
