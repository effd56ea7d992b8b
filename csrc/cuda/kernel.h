// The one kernel: it moves memory, the mathematics has its home in csrc/step. It must not know torch;
// tests/cuda_shim.cpp compiles this very file for the CPU. Compiled apart is what moves other bytes: formats
// but that of a window, and the arrays of a filter. Whatever else is chosen is the same for a whole launch,
// and asked for: AMSGrad's array too, and beside states in 8 bits which 16 bits parameters have.
//
// Memory: 36 bytes per float32 element with the EMA filter (reads param, grad, exp_avg, exp_avg_sq,
// grad_ema: 20; writes all but grad: 16), 28 without, 48 with the mean of a window (reads besides those 28
// what leaves, the sum, and on average one value of the window: 12; writes what enters and the sum: 8), 42
// where that is bfloat16; 24 with the EMA filter and bfloat16 states; all twice for float64. With the EMA
// filter and states in 8 bits 18.125 (reads 4 + 4 + 3, writes 4 + 3, and 8 for the bases of 64 elements).
// Parameters of 16 bits take 6 less, and 4 of these again with Kahan's rounding. A mask adds 0.125; a pack of
// which it keeps nothing, or a block of states in 8 bits, costs the param (4, or 2) where it zeroes, and
// nothing where it freezes. Per block of threads besides: one row of the table.
#pragma once

#include <cstdint>

#include "block8.h"
#include "chunks.h"
#include "packs.h"

namespace grokfused {

// Blocks that a multiprocessor shall hold at once: a thread then has 128 registers at most, which suffice.
constexpr int kBlocksAtOnce = 2;

// kWidth elements from i on.
template <class Stored, int kWidth>
GROK_HD void run_packs(const Chunk& chunk, const Choices& choices, int i,
                       const ScalarsOf<typename Stored::Real>& scalars, const Window& window) {
  const uint32_t kept = kept_lanes(chunk.mask, i, kWidth), all = kept_lanes(nullptr, i, kWidth);
  Packs<Stored, kWidth> packs;
  if (kept == 0) {
    packs.clear(chunk, choices, i);
    return;
  }
  packs.load(chunk, choices, window, i);
  packs.step(scalars, choices, chunk.random_key, chunk.first + static_cast<uint32_t>(i));
  if (kept != all) packs.leave_out(chunk, choices, i, kept);
  packs.store(chunk, choices, i);
}

// The gradients overflowed under the loss scale.
template <class Real>
GROK_HD bool is_cancelled(const DeviceNumbers<Real>& numbers) {
  if (!numbers.found_inf) return false;
  assume_global(numbers.found_inf);
  return *numbers.found_inf != 0;
}

template <class Table>
GROK_HD auto scalars_of(const Table& table, int32_t tensor) {
  const auto* grad_scale = table.numbers.grad_scale;
  if (grad_scale) assume_global(grad_scale);
  return unscaled(table.scalars_of(tensor), grad_scale);
}

GROK_HD void advance(float* counter, float step) {
  if (!counter) return;
  assume_global(counter);
  *counter = step;
}

// The elements from `begin` on, at most a chunk of them: counted from there, indices of 32 bits suffice for a
// loop. A chunk begins with a word of the mask, and with a block of states in 8 bits.
template <class Stored>
GROK_HD Chunk chunk_of(const Slice& slice, const Choices& choices, int64_t begin, int64_t chunk_size,
                       const Window& window, uint32_t key) {
  Chunk part{slice, key, nullptr};
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
    const int64_t before = is_ring(decltype(row)::kRow) ? window.place * window.plane : 0;
    with_format<Stored>(row, choices, [&](auto format) { move(format, place, before + begin); });
  });
  constexpr int kOwn = Stored::States::kCount;
  const bool rest = Stored::kCanKeepRest && choices.keeps_rest();
  if (choices.amsgrad) move(typename Stored::State{}, kOwn, begin);
  if (rest && choices.amsgrad) move(typename Stored::Param{}, kOwn + 1, begin);
  if (rest && !choices.amsgrad) move(typename Stored::Param{}, kOwn, begin);
  if constexpr (Stored::kIn8Bits) {
    void* const after = rest && choices.amsgrad ? slice.states[kOwn + 2] : slice.states[kOwn + 1];
    void* const bases = rest || choices.amsgrad ? after : slice.states[kOwn];
    part.bases = static_cast<uint32_t*>(bases) + begin / kBlock;
    assume_global(part.bases);
  }
  const int64_t left = slice.size - begin;
  part.size = left < chunk_size ? left : chunk_size;
  if (part.mask) part.mask += begin / kLanes;
  part.first = slice.first + static_cast<uint32_t>(begin);
  return part;
}

// One block steps one chunk. A tensor that is not aligned, or the rest of one of odd size, goes element by
// element through the same code.
template <class Stored, class Table>
__global__ void __launch_bounds__(kThreads, kBlocksAtOnce) adamw_kernel(const __grid_constant__ Table table) {
  constexpr int kWidth = Stored::kWidth;
  if (is_cancelled(table.numbers)) return;
  const Choices choices = table.choices;
  const int32_t number = static_cast<int32_t>(blockIdx.x), tensor = table.tensor_of(number);
  const int thread = static_cast<int>(threadIdx.x);
  const Slice slice = table.slices[tensor];
  const auto scalars = scalars_of(table, tensor);
  const uint32_t key = random_key(table.seed, static_cast<uint32_t>(scalars.step));
  const int64_t begin = table.begin_of(number, tensor);
  const Window window = window_of(choices.window_size, static_cast<float>(scalars.step), slice.size, begin);
  const Chunk chunk = chunk_of<Stored>(slice, choices, begin, table.chunk_size, window, key);
  const int size = static_cast<int>(chunk.size);
  const bool fits = Packs<Stored, kWidth>::fits(chunk, choices, window);
  if constexpr (Stored::kIn8Bits) {
    const int whole = fits ? size / kBlock : 0, blocks = static_cast<int>(block_count(size));
    run_blocks<Stored, kWidth>(chunk, choices, thread, 0, whole, scalars, window);
    run_blocks<Stored, 1>(chunk, choices, thread, whole, blocks, scalars, window);
  } else {
    const int body = fits ? size / kWidth * kWidth : 0;
    for (int i = thread * kWidth; i < body; i += kThreads * kWidth)
      run_packs<Stored, kWidth>(chunk, choices, i, scalars, window);
    for (int i = body + thread; i < size; i += kThreads)
      run_packs<Stored, 1>(chunk, choices, i, scalars, window);
  }
  if (thread == 0 && begin == 0) advance(slice.step, static_cast<float>(scalars.step));
}

}  // namespace grokfused
