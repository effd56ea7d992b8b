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
constexpr int kTile = 1024;  // elements between two looks at a mask

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

// Whether all values are +0.
template <class Stored>
GROK_CPU_CLONES bool is_zero(const Stored* array, int size) {
  uint32_t bits = 0;
#pragma omp simd reduction(| : bits)
  for (int i = 0; i < size; ++i) bits |= stored_bits(array[i]);
  return bits == 0;
}

// Spreads words to one integer per element, from the word that holds element `begin` on.
GROK_CPU_CLONES void spread(const uint32_t* mask, int64_t begin, int size, uint32_t* kept) {
  const uint32_t* word = mask + begin / kLanes;
  for (int left = static_cast<int>(begin % kLanes) + size; left > 0; left -= kLanes, kept += kLanes, ++word) {
    const uint32_t lanes = *word;
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) kept[lane] = lanes >> lane & 1;
  }
}

// Elements of which a mask keeps some: all are computed, and written by selection.
template <class Step>
GROK_CPU_CLONES void run_tiles(const Slice& slice, int64_t begin, int64_t end, const Scalars& scalars,
                               uint32_t key) {
  const Scalars numbers = scalars;
  uint32_t kept[kTile + kLanes];
  for (; begin < end; begin += kTile) {
    const Slice tile = Step::part(slice, begin, std::min<int64_t>(kTile, end - begin), key);
    const int size = static_cast<int>(tile.size);
    spread(slice.mask, begin, size, kept);
    const uint32_t* const first = kept + begin % kLanes;
#pragma omp simd
    for (int i = 0; i < size; ++i) Step::run_where(tile, i, numbers, first[i] != 0);
  }
}

// Elements of which a mask keeps none. Their states are 0 since the mask was set, and nothing has written
// them; their parameters are looked at, because any code may write those.
template <class Step>
void run_pruned(const Slice& slice, int64_t begin, int64_t end) {
  for (; begin < end; begin += kTile) {
    const int size = static_cast<int>(std::min<int64_t>(kTile, end - begin));
    const Slice part = Step::part(slice, begin, size, 0);
    if (is_zero(static_cast<const typename Step::Param::Stored*>(part.param), size)) continue;
    Step::each_written([&](auto array, auto storage) {
      std::memset(part.*array, 0, size * sizeof(typename decltype(storage)::Stored));
    });
  }
}

template <class Step>
void run_masked(const Slice& slice, int64_t begin, int64_t end, const Scalars& scalars, uint32_t key) {
  for (Stretch stretch; begin < end; begin = stretch.end) {
    stretch = next_stretch(slice.mask, begin, end);
    if (stretch.kept == Kept::kAll) run_range<Step>(slice, begin, stretch.end, scalars, key);
    if (stretch.kept == Kept::kNone && slice.mask_mode == MaskMode::kZero)
      run_pruned<Step>(slice, begin, stretch.end);
    if (stretch.kept == Kept::kSome) run_tiles<Step>(slice, begin, stretch.end, scalars, key);
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
