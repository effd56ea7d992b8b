// Blocks of elements that share values: neighbouring threads step one together, and find the largest of what
// they measure before any of them writes. A filter or format with a shared value comes this way (StateRow).
#pragma once

#include "../step/blocks.h"
#include "chunks.h"
#include "packs.h"

namespace grokfused {

// The largest number of `threads` neighbours, a power of two of one warp; each of them gets it.
template <class Number>
__device__ Number largest_of(Number number, int threads) {
  for (int apart = 1; apart < threads; apart *= 2) {
    const Number other = __shfl_xor_sync(~0u, number, apart);
    number = other > number ? other : number;
  }
  return number;
}

// The packs of one thread, of a block that may end within them, and that may lie anywhere.
template <class Stored>
struct BlockPacks : Packs<Stored, Stored::kWidth> {
  static constexpr int kWidth = Stored::kWidth, kTogether = kBlock / kWidth;
  using Rows = typename Stored::States;
  using Real = typename Stored::Real;
  int64_t i;  // of the first one
  int count;
  bool wide;

  template <class Use>
  GROK_HD void each_shared_value(const Slice& slice, Use&& use) {
    each_shared<Rows>([&](auto row, int place) {
      use(this->state(row).values, static_cast<Real*>(slice.states[place])[i / kBlock]);
    });
  }

  GROK_HD void read(const Slice& slice, const Choices& choices) {
    if (count == 0) return;
    each_shared_value(slice, [](Real* values, Real shared) {
#pragma unroll
      for (int k = 0; k < kWidth; ++k) values[k] = shared;
    });
    if (wide) return this->load(slice, choices, i);
    const auto some = [this](auto& pack, const void* array) {
#pragma unroll
      for (int k = 0; k < kWidth; ++k)
        if (k < count) pack.values[k] = pack.at(array, i + k);
    };
    some(this->grad, slice.grad);
    this->each_written(slice, choices, some);
  }

  GROK_HD void write(const Slice& slice, const Choices& choices) {
    if (wide) return this->store(slice, choices, i);
    this->each_written(slice, choices, [this](const auto& pack, void* array) {
#pragma unroll
      for (int k = 0; k < kWidth; ++k)
        if (k < count) pack.at(array, i + k) = pack.values[k];
    });
  }

  // All threads of a block call it, those without elements too. Of a block of which the mask keeps nothing,
  // the shared values stay.
  __device__ void run(const Slice& slice, const Choices& choices, const ScalarsOf<Real>& scalars) {
    const uint32_t kept = count ? kept_lanes(slice.mask, i, count) : 0;
    const bool any = largest_of<uint32_t>(kept != 0, kTogether) != 0;
    read(slice, choices);
    Element<Real, typename Stored::Step::States> elements[kWidth];
    Real largest[Rows::kCount] = {};
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      if (k >= count) continue;
      elements[k] = this->element_of(k, choices);
      if (any) decode(elements[k]);
      const auto before = elements[k];
      Stored::Step::run(elements[k], scalars, choices);
      if (slice.mask) leave_out(elements[k], before, Where(kept_bits(kept, k), slice.mask_mode));
      measure(elements[k], largest);
    }
#pragma unroll
    for (Real& number : largest) number = largest_of(number, kTogether);
    const auto before = this->param, rest_before = this->kahan_comp;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      if (k >= count) continue;
      if (any) encode(elements[k], largest);
      this->put(k, elements[k], choices,
                random_bits(slice.random_key, slice.first + static_cast<uint32_t>(i + k)));
      if (!slice.mask) continue;
      const Where where(kept_bits(kept, k), slice.mask_mode);
      this->param.values[k] = masked_stored(where, this->param.values[k], before.values[k]);
      if (choices.keeps_rest())
        this->kahan_comp.values[k] = masked_stored(where, this->kahan_comp.values[k], rest_before.values[k]);
    }
    write(slice, choices);
    if (any && count && i % kBlock == 0)
      each_shared_value(slice, [](const Real* values, Real& shared) { shared = values[0]; });
  }
};

template <class Stored>
__device__ void run_blocks(const Slice& slice, const Choices& choices, int thread,
                           const ScalarsOf<typename Stored::Real>& scalars, const Window& window) {
  constexpr int kWidth = Stored::kWidth;
  const bool aligned = Packs<Stored, kWidth>::fits(slice, choices, window);
  for (int64_t begin = 0; begin < slice.size; begin += kThreads * kWidth) {
    BlockPacks<Stored> packs;
    packs.i = begin + thread * kWidth;
    const int64_t left = slice.size - packs.i;
    packs.count = left < 0 ? 0 : left < kWidth ? static_cast<int>(left) : kWidth;
    packs.wide = aligned && packs.count == kWidth;
    packs.run(slice, choices, scalars);
  }
}

}  // namespace grokfused
