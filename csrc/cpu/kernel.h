// The CPU kernel: one parallel region over the elements of all tensors, one simd loop over
// ElementStep.
//
// Memory: 36 bytes per float32 element with the EMA filter (reads param, grad, exp_avg, exp_avg_sq,
// grad_ema: 20; writes all but grad: 16), 28 without; 24 with bfloat16 states. Parameters of 16 bits take 6
// less, and 4 of these again with Kahan's rounding. A mask adds 0.125; a word of it that keeps nothing costs
// the param (4, or 2) where it zeroes, and nothing where it freezes.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "../work.h"

// One build runs at each machine's own vector width; which clone is decided once, at load time.
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(GROK_NO_CLONES)
#define GROK_CPU_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define GROK_CPU_CLONES
#endif

namespace grokfused::cpu {

// Below this many elements a second thread costs more than it saves.
constexpr int64_t kElementsPerThread = 16384;
constexpr int64_t kBlock = 1 << 20;
// Under a mask: elements that are computed together, that are looked at together to say whether few words of
// the mask keep something (one of kSparse), and how far ahead of a step its words are then fetched.
constexpr int kTile = 1024, kMaskBlock = 16 * kTile, kSparse = 4, kAhead = 2 * kTile;
constexpr size_t kCacheLine = 64;

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

// Elements of which a mask keeps none. Their states are 0 since the mask was set, and nothing has written
// them; their parameters are looked at, because any code may write those.
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

// What a mask keeps of the elements from some place up to `end`.
struct Kept {
  int64_t end;
  bool any = false, all = true;
};

// Looks at the words from `begin` on, at most up to `end`: a tile of them, or in a sparse part of the mask
// only as many as alike keep something, or nothing. The first and the last word may be cut.
inline Kept look(const uint32_t* mask, int64_t begin, int64_t end, bool sparse) {
  Kept kept{begin};
  for (int64_t next; kept.end < std::min(end, begin + kTile); kept.end = next) {
    next = std::min(end, (kept.end / kLanes + 1) * kLanes);
    const int count = static_cast<int>(next - kept.end);
    const uint32_t lanes = kept_lanes(mask, kept.end, count);
    if (sparse && kept.end > begin && kept.any != (lanes != 0)) break;
    kept.any |= lanes != 0;
    kept.all &= lanes == ~uint32_t{0} >> (kLanes - count);
  }
  return kept;
}

// All elements are computed, and written by selection; at most a tile of them. One loop per mode: as a
// constant, it leaves one instruction of the selection.
template <class Step, MaskMode kMode>
GROK_CPU_CLONES void run_selected(const Slice& slice, int64_t begin, int64_t end, const Scalars& scalars,
                                  uint32_t key) {
  const Scalars numbers = scalars;
  const int cut = static_cast<int>(begin % kLanes);  // elements of the first word that lie before `begin`
  const int words = static_cast<int>(mask_words(end) - begin / kLanes);
  uint32_t kept[kTile + kLanes];
  for (int word = 0; word < words; ++word) {
    const uint32_t lanes = slice.mask[begin / kLanes + word];
    uint32_t* word_kept = kept + word * kLanes;
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) word_kept[lane] = kept_bits(lanes, lane);
  }
  const Slice part = Step::part(slice, begin, end - begin, key);
  const int size = static_cast<int>(part.size);
#pragma omp simd
  for (int i = 0; i < size; ++i) Step::run_where(part, i, numbers, Where(kept[cut + i], kMode));
}

// Fetches what will be read where words keep something. Where few do, the processor sees no pattern in what
// is read, and would wait for each; and between tiles, while their words are spread out, it would read
// nothing.
template <class Step>
void prefetch_used(const Slice& slice, int64_t begin, int64_t end) {
  for (int64_t word = begin / kLanes; word < end / kLanes; ++word) {
    if (slice.mask[word] == 0) continue;
    const auto fetch = [&](const void* array, size_t stored_size) {
      const char* first = static_cast<const char*>(array) + word * kLanes * stored_size;
      for (size_t line = 0; line < kLanes * stored_size; line += kCacheLine) __builtin_prefetch(first + line);
    };
    fetch(slice.grad, sizeof(typename Step::Param::Stored));
    Step::each_written(
        [&](auto array, auto storage) { fetch(slice.*array, sizeof(typename decltype(storage)::Stored)); });
  }
}

// The words of which the elements from `begin` up to `end` have a part.
struct Words {
  int64_t all, used = 0, full = 0;  // of them keep something; keep all

  Words(const uint32_t* mask, int64_t begin, int64_t end) : all(mask_words(end) - begin / kLanes) {
    const uint32_t* words = mask + begin / kLanes;
    for (int64_t word = 0; word < all; ++word) {
      used += words[word] != 0;
      full += words[word] == ~uint32_t{0};
    }
  }

  // So few keep something that the others are better left out than computed along.
  bool sparse() const { return used * kSparse <= all; }
};

template <class Step>
void run_masked(const Slice& slice, int64_t begin, int64_t end, const Scalars& scalars, uint32_t key) {
  const bool zero = slice.mask_mode == MaskMode::kZero;
  const auto selected = zero ? run_selected<Step, MaskMode::kZero> : run_selected<Step, MaskMode::kFreeze>;
  for (int64_t stop; begin < end; begin = stop) {
    stop = std::min(end, (begin / kMaskBlock + 1) * kMaskBlock);
    const Words words(slice.mask, begin, stop);
    for (Kept kept; begin < stop; begin = kept.end) {
      kept = words.full == words.all ? Kept{stop, true, true} : look(slice.mask, begin, stop, words.sparse());
      if (words.full != words.all)
        prefetch_used<Step>(slice, begin + kAhead, std::min(end, kept.end + kAhead));
      if (kept.all)
        run_range<Step>(slice, begin, kept.end, scalars, key);
      else if (kept.any)
        selected(slice, begin, kept.end, scalars, key);
      else if (zero)
        clear_pruned<Step>(slice, begin, static_cast<int>(kept.end - begin));
    }
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

// The kernel for parameters of one format. Compiled for each in a file of its own, which a build runs side by
// side.
template <class Format>
Kernel kernel_for(const Policies& policies) {
  Kernel kernel = nullptr;
  with_element_step<Format>(policies, [&](auto step) { kernel = &run_all<decltype(step)>; });
  return kernel;
}

extern template Kernel kernel_for<Float32>(const Policies&);
extern template Kernel kernel_for<BFloat16>(const Policies&);
extern template Kernel kernel_for<Float16>(const Policies&);

}  // namespace grokfused::cpu
