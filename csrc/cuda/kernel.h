// The one kernel: it moves memory, the mathematics has its home in csrc/step. It must not know torch;
// tests/cuda_shim.cpp compiles this very file for the CPU. Compiled apart is what moves other bytes: formats,
// and the arrays of a filter and of AMSGrad. Whatever else is chosen is the same for a whole launch, and
// asked for.
//
// Memory: 36 bytes per float32 element with the EMA filter (reads param, grad, exp_avg, exp_avg_sq,
// grad_ema: 20; writes all but grad: 16), 28 without; 24 with bfloat16 states; all twice for float64.
// Parameters of 16 bits take 6 less, and 4 of these again with Kahan's rounding. A mask adds 0.125; a pack of
// which it keeps nothing costs the param (4, or 2) where it zeroes, and nothing where it freezes. Per block
// besides: one row of the table.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../step/element_step.h"
#include "chunks.h"

namespace grokfused {

constexpr int kThreads = 256;
constexpr int kAlignment = 16;  // bytes of the widest load there is

// A step, and in which formats its arrays are.
template <class ParamFormat, class StateFormat, class ElementStep>
struct StoredStep {
  using Param = ParamFormat;
  using State = StateFormat;
  using Step = ElementStep;
  using States = typename ElementStep::States;
  using Real = typename Param::Real;
  static constexpr bool kHas16Bits =
      sizeof(typename Param::Stored) == 2 || sizeof(typename State::Stored) == 2;
  // Elements that a thread steps at once.
  static constexpr int kWidth = kHas16Bits ? 8 : kAlignment / sizeof(typename Param::Stored);
  static constexpr bool kCanKeepRest = sizeof(typename Param::Stored) == 2;
};

// Values that are read or written at once: 16 bytes or a multiple of it, or a single one.
template <class ArrayFormat, int kWidth>
struct alignas(kWidth == 1 ? sizeof(typename ArrayFormat::Stored) : kAlignment) Pack {
  using Format = ArrayFormat;
  typename Format::Stored values[kWidth];

  static GROK_HD Pack& in(void* array, int64_t i) {
    return *reinterpret_cast<Pack*>(static_cast<typename Format::Stored*>(array) + i);
  }
  static GROK_HD const Pack& in(const void* array, int64_t i) {
    return *reinterpret_cast<const Pack*>(static_cast<const typename Format::Stored*>(array) + i);
  }
  GROK_HD auto widened(int k) const { return Format::widen(values[k]); }
  GROK_HD void round(int k, typename Format::Real value, Rounding rounding, uint32_t random_bits) {
    values[k] = rounded<Format>(value, rounding, random_bits);
  }
};

template <class Stored, class Row, int kWidth>
struct StatePack {
  using Format = std::conditional_t<Row::kRow.like_param, typename Stored::Param, typename Stored::State>;
  Pack<Format, kWidth> pack;
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

  // Calls use(pack, array) for every array that a step writes.
  template <class Use>
  GROK_HD void each_written(const Slice& slice, const Choices& choices, Use&& use) {
    use(param, slice.param);
    Stored::States::each([&](auto row, int place) { use(state(row), slice.states[place]); });
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
      Element<typename Stored::Real, typename Stored::States> element;
      element.param = param.widened(k);
      if constexpr (Stored::kCanKeepRest)
        if (choices.keeps_rest()) element.param = element.param + kahan_comp.widened(k);
      element.grad = grad.widened(k);
      Stored::States::each([&](auto row, int) { value_of<decltype(row)>(element) = state(row).widened(k); });
      Stored::Step::run(element, scalars, choices.decay);
      const uint32_t bits = draws ? random_bits(random_key, first + static_cast<uint32_t>(k)) : 0;
      param.round(k, element.param, choices.param_rounding, param_draw(bits));
      if constexpr (Stored::kCanKeepRest)
        if (choices.keeps_rest())
          kahan_comp.round(k, cut_off<typename Stored::Param>(element.param), Rounding::kNearest, 0);
      Stored::States::each([&](auto row, int) {
        state(row).round(k, value_of<decltype(row)>(element), choices.state_rounding, state_draw(bits));
      });
    }
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

// kWidth elements from i on.
template <class Stored, int kWidth>
GROK_HD void run_packs(const Slice& slice, const Choices& choices, int64_t i,
                       const ScalarsOf<typename Stored::Real>& scalars) {
  const uint32_t kept = kept_lanes(slice.mask, i, kWidth), all = kept_lanes(nullptr, i, kWidth);
  Packs<Stored, kWidth> packs;
  if (kept == 0) return packs.clear(slice, choices, i);
  packs.load(slice, choices, i);
  packs.step(scalars, choices, slice.random_key, slice.first + static_cast<uint32_t>(i));
  if (kept != all) packs.leave_out(slice, choices, i, kept);
  packs.store(slice, choices, i);
}

// The gradients overflowed under the loss scale.
template <class Real>
GROK_HD bool is_cancelled(const DeviceNumbers<Real>& numbers) {
  if (!numbers.found_inf) return false;
  assume_global(numbers.found_inf);
  return *numbers.found_inf != 0;
}

template <class Real>
GROK_HD ScalarsOf<Real> scalars_of(const Table<Real>& table, int32_t tensor) {
  const Real* grad_scale = table.numbers.grad_scale;
  if (grad_scale) assume_global(grad_scale);
  return unscaled(table.scalars_of(tensor), grad_scale);
}

GROK_HD void advance(float* counter, float step) {
  if (!counter) return;
  assume_global(counter);
  *counter = step;
}

// The elements from `begin` on, at most a chunk of them: counted from there, indices of 32 bits suffice for a
// loop. A chunk begins with a word of the mask. (A block that a storage needs whole lies in one chunk.)
template <class Stored>
GROK_HD Slice chunk_of(const Slice& slice, const Choices& choices, int64_t begin, float step, uint32_t key) {
  Slice part = slice;
  using Param = typename Stored::Param::Stored;
  part.param = static_cast<Param*>(slice.param) + begin;
  part.grad = static_cast<const Param*>(slice.grad) + begin;
  assume_global(part.grad);
  assume_global(part.param);
  const auto move = [&](auto format, int place, int64_t begin) {
    part.states[place] = static_cast<typename decltype(format)::Stored*>(slice.states[place]) + begin;
    assume_global(part.states[place]);
  };
  Stored::States::each([&](auto row, int place) {
    constexpr int planes = decltype(row)::kRow.planes;
    move(typename StatePack<Stored, decltype(row), 1>::Format{}, place,
         begin + plane_begin(planes, step, slice.size));
  });
  if constexpr (Stored::kCanKeepRest)
    if (choices.keeps_rest()) move(typename Stored::Param{}, Stored::States::kCount, begin);
  const int64_t rest = slice.size - begin;
  part.size = rest < kChunkSize ? rest : kChunkSize;
  if (part.mask) part.mask += begin / kLanes;
  part.random_key = key;
  part.first = slice.first + static_cast<uint32_t>(begin);
  return part;
}

// One block steps one chunk. A tensor that is not aligned, or the rest of one of odd size, goes element
// by element through the same run_packs.
template <class Stored, class Source>
__global__ void __launch_bounds__(kThreads, 1) adamw_kernel(const __grid_constant__ Source source) {
  constexpr int kWidth = Stored::kWidth;
  const Table<typename Stored::Real> table = source.table();
  if (is_cancelled(table.numbers)) return;
  const Choices choices = table.choices;
  const int32_t chunk = static_cast<int32_t>(blockIdx.x), tensor = table.tensor_of(chunk);
  const int thread = static_cast<int>(threadIdx.x);
  const Slice slice = table.slices[tensor];
  const auto scalars = scalars_of(table, tensor);
  const uint32_t key = random_key(table.seed, static_cast<uint32_t>(scalars.step));
  const int64_t begin = table.begin_of(chunk, tensor);
  const Slice part = chunk_of<Stored>(slice, choices, begin, static_cast<float>(scalars.step), key);
  const int size = static_cast<int>(part.size);
  const int body = Packs<Stored, kWidth>::fits(part, choices) ? size / kWidth * kWidth : 0;
  for (int i = thread * kWidth; i < body; i += kThreads * kWidth)
    run_packs<Stored, kWidth>(part, choices, i, scalars);
  for (int i = body + thread; i < size; i += kThreads) run_packs<Stored, 1>(part, choices, i, scalars);
  if (thread == 0 && begin == 0) advance(slice.step, static_cast<float>(scalars.step));
}

}  // namespace grokfused
