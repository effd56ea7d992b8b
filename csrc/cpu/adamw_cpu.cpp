// The CPU kernel: one parallel region over the elements of all tensors, one simd loop over
// ElementStep.
//
// Memory: 36 bytes per float32 element with the EMA filter (reads param, grad, exp_avg, exp_avg_sq,
// grad_ema: 20; writes all but grad: 16), 28 without; 24 with bfloat16 states. A mask adds 0.125; a word of
// it that keeps nothing costs the param (4) where it zeroes, and nothing where it freezes.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>

#include "../op.h"

// One build runs at each machine's own vector width; which clone is decided once, at load time.
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(GROK_NO_CLONES)
#define GROK_CPU_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define GROK_CPU_CLONES
#endif

namespace grokfused {
namespace {

// Below this many elements a second thread costs more than it saves.
constexpr int64_t kElementsPerThread = 16384;
constexpr int64_t kBlock = 1 << 20;
constexpr int64_t kTile = 1024;  // elements that are dense, or looked at word by word

template <class Step>
GROK_CPU_CLONES void run_range(const Slice& slice, int64_t begin, int64_t end, const Scalars& scalars,
                               uint32_t key) {
  const Scalars numbers = scalars;  // copies: the compiler then knows that no store changes them
  for (; begin < end; begin += kBlock) {
    const Slice part = Step::part(slice, begin, std::min(kBlock, end - begin), key);
    const int size = static_cast<int>(part.size);
#pragma omp simd
    for (int i = 0; i < size; ++i) Step::run(part, i, numbers);
  }
}

// Elements of which a mask keeps none, at most a word of them. Their states are 0 since the mask was set, and
// nothing has written them; their parameters are looked at, because any code may write those.
template <class Step>
GROK_HD void clear_pruned(const Slice& slice, int64_t begin, int size) {
  const Slice part = Step::part(slice, begin, size, 0);
  const auto* param = static_cast<const typename Step::Param::Stored*>(part.param);
  uint32_t bits = 0;
#pragma omp simd reduction(| : bits)
  for (int i = 0; i < size; ++i) bits |= stored_bits(param[i]);
  if (bits == 0) return;
  Step::each_written([&](auto array, auto storage) {
    std::memset(part.*array, 0, size * sizeof(typename decltype(storage)::Stored));
  });
}

// Word by word: where one keeps some of its elements all of them are computed, and written by selection.
template <class Step>
GROK_CPU_CLONES void run_words(const Slice& slice, int64_t begin, int64_t end, const Scalars& scalars,
                               uint32_t key) {
  const Scalars numbers = scalars;
  uint32_t kept[kLanes];
  for (int64_t stop; begin < end; begin = stop) {
    stop = std::min(end, (begin / kLanes + 1) * kLanes);
    const int size = static_cast<int>(stop - begin);
    const uint32_t lanes = kept_lanes(slice.mask, begin, size);
    if (lanes == 0) {
      if (slice.mask_mode == MaskMode::kZero) clear_pruned<Step>(slice, begin, size);
      continue;
    }
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) kept[lane] = lanes >> lane & 1;
    const Slice part = Step::part(slice, begin, size, key);
#pragma omp simd
    for (int i = 0; i < size; ++i) Step::run_where(part, i, numbers, kept[i] != 0);
  }
}

// Whether a mask keeps every element; `begin` is the first of a word.
bool keeps_all(const uint32_t* mask, int64_t begin, int64_t end) {
  uint32_t all = ~uint32_t{0};
  for (int64_t word = begin / kLanes; word < end / kLanes; ++word) all &= mask[word];
  return ~all == 0 && end % kLanes == 0;
}

template <class Step>
void run_masked(const Slice& slice, int64_t begin, int64_t end, const Scalars& scalars, uint32_t key) {
  const auto tile_end = [&](int64_t at) { return std::min(end, (at / kTile + 1) * kTile); };
  const auto dense = [&](int64_t at) { return at % kLanes == 0 && keeps_all(slice.mask, at, tile_end(at)); };
  for (int64_t stop; begin < end; begin = stop) {
    const bool all = dense(begin);
    for (stop = tile_end(begin); stop < end && dense(stop) == all;) stop = tile_end(stop);
    (all ? run_range<Step> : run_words<Step>)(slice, begin, stop, scalars, key);
  }
}

// Threads share the elements evenly, whatever the tensors' sizes: element e of the whole list
// belongs to the tensor t with starts[t] <= e < starts[t + 1].
template <class Step>
void run_all(const Work& work) {
  if (work.found_inf && *work.found_inf != 0) return;
  std::vector<int64_t> starts{0};
  for (const Slice& slice : work.slices) starts.push_back(starts.back() + slice.size);
  torch::stable::parallel_for(0, starts.back(), kElementsPerThread, [&](int64_t begin, int64_t end) {
    size_t t = std::upper_bound(starts.begin(), starts.end(), begin) - starts.begin() - 1;
    for (; begin < end; begin = starts[++t]) {
      const int64_t stop = std::min(end, starts[t + 1]);
      const Scalars scalars = unscaled(work.scalars[work.rows[t]], work.grad_scale);
      const uint32_t key = random_key(work.seed, static_cast<uint32_t>(scalars.step));
      const auto run = work.slices[t].mask ? run_masked<Step> : run_range<Step>;
      run(work.slices[t], begin - starts[t], stop - starts[t], scalars, key);
    }
  });
  for (size_t t = 0; t < work.slices.size(); ++t) work.steps[t] = work.scalars[work.rows[t]].step;
}

Kernel choose_cpu_kernel(const Policies& policies) {
  Kernel kernel = nullptr;
  with_element_step(policies, [&](auto step) { kernel = &run_all<decltype(step)>; });
  return kernel;
}

const RegisterKernels registered("cpu", choose_cpu_kernel);

STABLE_TORCH_LIBRARY_IMPL(grokfused, CPU, library) {
  library.impl("adamw_step_", &adamw_step<choose_cpu_kernel>);
}

}  // namespace
}  // namespace grokfused
