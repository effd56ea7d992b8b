// The elements that a thread steps at once: how they are read, stepped and written. It knows no grid.
#pragma once

#include <cstdint>

#include "formats.h"

namespace grokfused {

// Values that are read or written at once: 16 bytes, 8 of those of 16 bits, or a single one.
template <class ArrayFormat, int kWidth>
struct alignas(kWidth * sizeof(typename ArrayFormat::Stored)) Pack {
  using Format = ArrayFormat;
  typename Format::Stored values[kWidth];

  static GROK_HD Pack read(const void* array, int64_t i) {
    return *reinterpret_cast<const Pack*>(static_cast<const typename Format::Stored*>(array) + i);
  }
  GROK_HD void write(void* array, int64_t i) const {
    *reinterpret_cast<Pack*>(static_cast<typename Format::Stored*>(array) + i) = *this;
  }
  GROK_HD auto widened(int k) const { return Format::widen(values[k]); }
  GROK_HD void round(int k, typename Format::Real value, Rounding rounding, uint32_t random_bits) {
    values[k] = rounded<Format>(value, rounding, random_bits);
  }
};

// Values of float32 that 16 bits hold, and that are stored as such.
template <int kWidth>
struct NarrowPack : Pack<Float32, kWidth> {
  using InMemory = Pack<BFloat16, kWidth>;
  static GROK_HD NarrowPack read(const void* array, int64_t i) {
    const InMemory stored = InMemory::read(array, i);
    NarrowPack found;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) found.values[k] = stored.widened(k);
    return found;
  }
  GROK_HD void write(void* array, int64_t i) const {
    InMemory stored;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) stored.round(k, this->values[k], Rounding::kNearest, 0);
    stored.write(array, i);
  }
};

// The values of an array in a pack. A window's are real numbers, however they are stored.
template <class Stored, class Row, int kWidth>
struct StatePack {
  using Wide = Pack<FormatOf<Stored, std::conditional_t<Row::kRow.of == Of::kWindow, GradSum, Row>>, kWidth>;
  static constexpr bool kMayBeNarrow =
      Row::kRow.of == Of::kWindow && std::is_same_v<typename Stored::Real, float>;
  std::conditional_t<kMayBeNarrow, NarrowPack<kWidth>, Wide> pack;

  // As it is stored in a format.
  template <class Format>
  GROK_HD auto& in(Format) {
    if constexpr (kMayBeNarrow && std::is_same_v<Format, BFloat16>)
      return pack;
    else
      return static_cast<Wide&>(pack);
  }
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
  static constexpr bool kHasWindow = std::is_same_v<typename Stored::Step::Filter, Mean>;
  static constexpr int kWindowPlace = Moments::kCount;
  static constexpr int kOwn = Stored::States::kCount;  // places of states before the optional ones
  ParamPack param, grad, kahan_comp;
  Pack<typename Stored::State, kWidth> largest;  // AMSGrad's

  template <class Row>
  GROK_HD auto& state(Row) {
    return static_cast<StatePack<Stored, Row, kWidth>&>(*this).pack;
  }

  // Calls use(pack) with that of an array.
  template <class Row, class Use>
  GROK_HD void with_pack(Row row, const Choices& choices, Use&& use) {
    with_format<Stored>(row, choices, [&](auto format) {
      use(static_cast<StatePack<Stored, Row, kWidth>&>(*this).in(format));
    });
  }

  // Calls use(pack, array) for every array of which a step writes each element.
  template <class Use>
  GROK_HD void each_written(const Slice& slice, const Choices& choices, Use&& use) {
    use(param, slice.param);
    Stored::States::each([&](auto row, int place) {
      if constexpr (Stored::is_packed(decltype(row)::kRow))
        with_pack(row, choices, [&](auto& pack) { use(pack, slice.states[place]); });
    });
    with_optional(slice, choices, use);
  }

  // What is known to lie in global memory is said once more: the compiler forgets it where branches meet.
  template <class Use>
  GROK_HD void with_optional(const Slice& slice, const Choices& choices, Use&& use) {
    if constexpr (!Stored::kIn8Bits) {
      if (choices.amsgrad) {
        assume_global(slice.states[kOwn]);
        use(largest, slice.states[kOwn]);
      }
    }
    if constexpr (Stored::kCanKeepRest) {
      if (!choices.keeps_rest()) return;
      void* rest = choices.amsgrad ? slice.states[kOwn + 1] : slice.states[kOwn];
      assume_global(rest);
      use(kahan_comp, rest);
    }
  }

  GROK_HD void load(const Slice& slice, const Choices& choices, int i) {
    grad = ParamPack::read(slice.grad, i);
    each_written(slice, choices, [&](auto& pack, const void* array) { pack = pack.read(array, i); });
  }

  // And of a window what all but the leaving gradients sum up to.
  GROK_HD void load(const Slice& slice, const Choices& choices, const Window& window, int i) {
    if constexpr (kHasWindow) {
      const bool afresh = window.has_turn(i);
      if (afresh) sum_others(slice, choices, window, i);
      const auto others = state(GradSum{});
      load(slice, choices, i);
      if (afresh)
        state(GradSum{}) = others;
      else
        take_off();
    } else {
      load(slice, choices, i);
    }
  }

  GROK_HD void store(const Slice& slice, const Choices& choices, int i) {
    each_written(slice, choices, [&](auto& pack, void* array) { pack.write(array, i); });
  }

  GROK_HD void step(const ScalarsOf<typename Stored::Real>& scalars, const Choices& choices,
                    uint32_t random_key, uint32_t first) {
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      auto element = element_of(k, choices);
      Stored::Step::run(element, scalars, choices);
      put(k, element, choices, draws_of(k, choices, random_key, first));
    }
  }

  // `first`: a multiple of kWidth. Told so, the compiler knows which neighbours share their bits.
  static GROK_HD Draws draws_of(int k, const Choices& choices, uint32_t random_key, uint32_t first) {
    const uint32_t i = (first & ~(uint32_t{kWidth} - 1)) | static_cast<uint32_t>(k);
    return grokfused::draws_of(choices.param_rounding, choices.state_rounding, random_key, i);
  }

  GROK_HD auto element_of(int k, const Choices& choices) {
    Element<typename Stored::Real, typename Stored::Step::States> element;
    with_param<Stored>(choices, [&](auto format) {
      element.param = format.widen(param.values[k]);
      if constexpr (Stored::kCanKeepRest)
        if (choices.keeps_rest()) element.param = element.param + format.widen(kahan_comp.values[k]);
      element.grad = format.widen(grad.values[k]);
    });
    Stored::States::each([&](auto row, int) {
      constexpr StateRow kRow = decltype(row)::kRow;
      if constexpr (kRow.of != Of::kWindow && Stored::is_packed(kRow))
        value_of<decltype(row)>(element) = state(row).widened(k);
    });
    if constexpr (!Stored::kIn8Bits)
      if (choices.amsgrad) element.max_exp_avg_sq = largest.widened(k);
    return element;
  }

  template <class Element>
  GROK_HD void put(int k, Element& element, const Choices& choices, const Draws& draws) {
    with_param<Stored>(choices, [&](auto format) {
      using Format = decltype(format);
      param.values[k] = rounded<Format>(element.param, choices.param_rounding, draws.param);
      if constexpr (Stored::kCanKeepRest)
        if (choices.keeps_rest()) kahan_comp.values[k] = Format::round(cut_off<Format>(element.param));
    });
    Stored::States::each([&](auto row, int) {
      constexpr StateRow kRow = decltype(row)::kRow;
      const Rounding rounding = kRow.of == Of::kStates ? choices.state_rounding : Rounding::kNearest;
      if constexpr (Stored::is_packed(kRow))
        state(row).round(k, value_of<decltype(row)>(element), rounding, draws.state);
    });
    if constexpr (!Stored::kIn8Bits)
      if (choices.amsgrad) largest.round(k, element.max_exp_avg_sq, choices.state_rounding, draws.state);
  }

  // Takes back, from the arrays, what the mask does not keep.
  GROK_HD void leave_out(const Slice& slice, const Choices& choices, int i, uint32_t kept) {
    each_written(slice, choices, [&](auto& pack, const void* array) {
      const auto before = pack.read(array, i);
#pragma unroll
      for (int k = 0; k < kWidth; ++k)
        pack.values[k] =
            masked_stored(Where(kept_bits(kept, k), slice.mask_mode), pack.values[k], before.values[k]);
    });
  }

  // Elements of which the mask keeps none. Their states are 0 since the mask was set; their parameters are
  // looked at, because any code may write those. Returns whether one was not 0.
  GROK_HD bool clear(const Slice& slice, const Choices& choices, int i) {
    if (slice.mask_mode == MaskMode::kFreeze) return false;
    param = ParamPack::read(slice.param, i);
    auto bits = stored_bits(param.values[0]);
#pragma unroll
    for (int k = 1; k < kWidth; ++k) bits |= stored_bits(param.values[k]);
    if (bits == 0) return false;
    each_written(slice, choices, [&](auto& pack, void* array) {
      pack = {};
      pack.write(array, i);
    });
    return true;
  }

  // What all but the leaving gradients of a window sum up to, taken afresh, into `grad_sum`: before anything
  // else is read, when there are registers for it. `at`: the first element's index in the chunk.
  GROK_HD void sum_others(const Slice& slice, const Choices& choices, const Window& window, int at) {
    with_pack(GradWindow{}, choices, [&](const auto& pack) {
      auto& sum = state(GradSum{});
      sum = {};
      for (int32_t older = 1; older < window.size; ++older) {
        const auto plane = pack.read(slice.states[kWindowPlace], at + window.behind(older));
#pragma unroll
        for (int k = 0; k < kWidth; ++k) sum.values[k] = added(sum.values[k], plane.values[k]);
      }
    });
  }

  // The same, of the running sum.
  GROK_HD void take_off() {
    auto& sum = state(GradSum{});
    const auto& leaving = state(GradWindow{});
#pragma unroll
    for (int k = 0; k < kWidth; ++k) sum.values[k] = taken_off(sum.values[k], leaving.values[k]);
  }

  // True when every array of the slice begins where a pack may, and so each plane of a window.
  static GROK_HD bool fits(const Slice& slice, const Choices& choices, const Window& window) {
    uintptr_t addresses = reinterpret_cast<uintptr_t>(slice.grad);
    const auto look = [&](const auto& pack, const void* array) {
      const auto bytes = static_cast<uintptr_t>(sizeof pack.values[0]);
      addresses |= reinterpret_cast<uintptr_t>(array) | (Stored::States::kHasRing ? bytes * window.plane : 0);
    };
    Packs{}.each_written(slice, choices, look);
    if constexpr (Stored::kIn8Bits)
      each_in_8_bits<Stored>(
          choices, [&](auto, int place) { addresses |= reinterpret_cast<uintptr_t>(slice.states[place]); });
    return addresses % kAlignment == 0;
  }
};

}  // namespace grokfused
