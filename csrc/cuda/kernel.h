// The one kernel: it moves memory, the mathematics has its home in csrc/step. It must not know torch;
// tests/cuda_shim.cpp compiles this very file for the CPU.
//
// Memory: 36 bytes per float32 element with the EMA filter (reads param, grad, exp_avg, exp_avg_sq,
// grad_ema: 20; writes all but grad: 16), 28 without; 24 with bfloat16 states. Parameters of 16 bits take 6
// less, and 4 of these again with Kahan's rounding. A mask adds 0.125; a pack of which it keeps nothing costs
// the param (4, or 2) where it zeroes, and nothing where it freezes. Per block besides: one row of the table.
#pragma once

#include <cstdint>

#include "../step/element_step.h"
#include "chunks.h"

namespace grokfused {

constexpr int kThreads = 256;
constexpr uintptr_t kAlignment = 16;  // bytes of the widest load there is

// Values that are read or written at once.
template <class Storage, int kWidth>
struct alignas(kAlignment) Pack {
  typename Storage::Stored values[kWidth];

  GROK_HD static Pack& in(void* array, int64_t i) { return *static_cast<Pack*>(at<Storage>(array, i)); }
  GROK_HD static const Pack& in(const void* array, int64_t i) {
    return *static_cast<const Pack*>(at<Storage>(array, i));
  }
};

// kWidth elements from one index on, as packs of 16 bytes or a multiple of it. All are read before the
// first is used, so that their loads are in flight together.
template <class Step>
struct Packs {
  static constexpr bool kHas16Bits =
      sizeof(typename Step::Param::Stored) == 2 || sizeof(typename Step::State::Stored) == 2;
  static constexpr int kWidth = kHas16Bits ? 8 : 4;
  using ParamPack = Pack<typename Step::Param, kWidth>;
  using StatePack = Pack<typename Step::State, kWidth>;

  ParamPack param, grad, kahan_comp;
  StatePack exp_avg, exp_avg_sq, max_exp_avg_sq, grad_ema;

  GROK_HD void load(const Slice& slice, int64_t i) {
    const Slice here = this->slice(0, 0);
    grad = ParamPack::in(slice.grad, i);
    Step::each_written([&](auto array, auto storage) {
      using In = Pack<decltype(storage), kWidth>;
      In::in(here.*array, 0) = In::in(slice.*array, i);
    });
  }

  GROK_HD void store(const Slice& slice, int64_t i) {
    const Slice here = this->slice(0, 0);
    Step::each_written([&](auto array, auto storage) {
      using In = Pack<decltype(storage), kWidth>;
      In::in(slice.*array, i) = In::in(here.*array, 0);
    });
  }

  // Takes back, from the arrays, what the mask does not keep.
  GROK_HD void leave_out(const Slice& slice, int64_t i, uint32_t kept) {
    const Slice here = this->slice(0, 0);
    Step::each_written([&](auto array, auto storage) {
      using In = Pack<decltype(storage), kWidth>;
      const In before = In::in(slice.*array, i);
      In& stepped = In::in(here.*array, 0);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        const Where where(kept_bits(kept, k), slice.mask_mode);
        stepped.values[k] = of_bits<typename decltype(storage)::Stored>(
            masked(where, stored_bits(stepped.values[k]), stored_bits(before.values[k])));
      }
    });
  }

  // The packs as a slice of their own: what steps it is the same Step::run.
  GROK_HD Slice slice(uint32_t random_key, uint32_t first) {
    return {param.values,
            grad.values,
            exp_avg.values,
            exp_avg_sq.values,
            max_exp_avg_sq.values,
            grad_ema.values,
            kahan_comp.values,
            nullptr,
            kWidth,
            random_key,
            first,
            MaskMode::kZero};
  }

  // True when every array of the slice begins where a pack may.
  GROK_HD static bool fits(const Slice& slice) {
    uintptr_t addresses = reinterpret_cast<uintptr_t>(slice.grad);
    Step::each_written([&](auto array, auto) { addresses |= reinterpret_cast<uintptr_t>(slice.*array); });
    return addresses % kAlignment == 0;
  }
};

template <class Step>
GROK_HD void assume_arrays_global(const Slice& slice) {
  assume_global(slice.grad);
  Step::each_written([&](auto array, auto) { assume_global(slice.*array); });
}

// Elements of which the mask keeps none. Their states are 0 since the mask was set; their parameters are
// looked at, because any code may write those.
template <class Step>
GROK_HD void run_pruned(const Slice& slice, int64_t i) {
  constexpr int kWidth = Packs<Step>::kWidth;
  if (slice.mask_mode == MaskMode::kFreeze) return;
  const typename Packs<Step>::ParamPack param = Packs<Step>::ParamPack::in(slice.param, i);
  uint32_t bits = 0;
#pragma unroll
  for (int k = 0; k < kWidth; ++k) bits |= stored_bits(param.values[k]);
  if (bits == 0) return;
  Step::each_written([&](auto array, auto storage) {
    using In = Pack<decltype(storage), kWidth>;
    In::in(slice.*array, i) = In{};
  });
}

template <class Step>
GROK_HD void run_packs(const Slice& slice, int64_t i, const Scalars& scalars) {
  constexpr int kWidth = Packs<Step>::kWidth;
  const uint32_t kept = kept_lanes(slice.mask, i, kWidth), all = kept_lanes(nullptr, i, kWidth);
  if (kept == 0) return run_pruned<Step>(slice, i);
  Packs<Step> packs;
  packs.load(slice, i);
  const Slice loaded = packs.slice(slice.random_key, slice.first + static_cast<uint32_t>(i));
#pragma unroll
  for (int k = 0; k < kWidth; ++k) Step::run(loaded, k, scalars);
  if (kept != all) packs.leave_out(slice, i, kept);
  packs.store(slice, i);
}

// The gradients overflowed under the loss scale.
GROK_HD bool is_cancelled(const DeviceNumbers& numbers) {
  if (!numbers.found_inf) return false;
  assume_global(numbers.found_inf);
  return *numbers.found_inf != 0;
}

GROK_HD Scalars scalars_of(const Table& table, int32_t tensor) {
  const float* grad_scale = table.numbers.grad_scale;
  if (grad_scale) assume_global(grad_scale);
  return unscaled(table.scalars_of(tensor), grad_scale);
}

GROK_HD void advance(const DeviceNumbers& numbers, int32_t tensor, float step) {
  if (!numbers.steps) return;
  assume_global(numbers.steps);
  numbers.steps[tensor] = step;
}

// One block steps one chunk. A tensor that is not aligned, or the rest of one of odd size, goes element
// by element through the same Step::run.
template <class Step, class Source>
__global__ void __launch_bounds__(kThreads, 1) adamw_kernel(const __grid_constant__ Source source) {
  constexpr int kWidth = Packs<Step>::kWidth;
  const Table table = source.table();
  if (is_cancelled(table.numbers)) return;
  const int32_t chunk = static_cast<int32_t>(blockIdx.x), tensor = table.tensor_of(chunk);
  const int thread = static_cast<int>(threadIdx.x);
  const Slice slice = table.slices[tensor];
  const Scalars scalars = scalars_of(table, tensor);
  const uint32_t key = random_key(table.seed, static_cast<uint32_t>(scalars.step));
  const int64_t begin = table.begin_of(chunk, tensor), rest = slice.size - begin;
  Slice part = Step::part(slice, begin, rest < kChunkSize ? rest : kChunkSize, key);
  if (part.mask) part.mask += begin / kLanes;  // a chunk begins with a word
  assume_arrays_global<Step>(part);
  const int size = static_cast<int>(part.size);
  const int body = Packs<Step>::fits(part) ? size / kWidth * kWidth : 0;
  for (int i = thread * kWidth; i < body; i += kThreads * kWidth) run_packs<Step>(part, i, scalars);
  for (int i = body + thread; i < size; i += kThreads)
    Step::run_where(part, i, scalars, Where(kept_bits(kept_lanes(part.mask, i, 1), 0), part.mask_mode));
  if (thread == 0 && begin == 0) advance(table.numbers, tensor, scalars.step);
}

}  // namespace grokfused
