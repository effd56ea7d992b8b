// A step under a mask. Tiles of which all is kept are stepped as without one; where nothing is kept, little
// or nothing is read; of the others everything is computed, and written by selection.
#pragma once

#include <algorithm>
#include <cstring>

#include "tile.h"

namespace grokfused::cpu {

// Elements that are looked at together to say whether few words of the mask keep something (one of kSparse),
// and how far ahead of a step its words are then fetched.
constexpr int kMaskBlock = 32 * kTile, kSparse = 4, kAhead = 4 * kTile;

// Elements of which a mask keeps none. Their states are 0 since the mask was set, and nothing has written
// them; their parameters are looked at, because any code may write those.
inline void clear_pruned(const SliceStep& step, int64_t begin, int64_t end) {
  const Array param = step.param();
  const int64_t size = end - begin;
  if (all_zero(param.at(begin), size * param.bytes)) return;
  step.each_written([&](const Array& array) { std::memset(array.at(begin), 0, size * array.bytes); });
}

// What a mask keeps of the elements from some place up to `end`.
struct Kept {
  int64_t end;
  bool any = false, all = true;
};

// Where the first whole unit begins that keeps something; a unit is a word or two.
inline int64_t first_kept(const uint32_t* mask, int64_t begin, int64_t end, int64_t unit) {
  while (begin + unit <= end && (mask[begin / kLanes] | mask[(begin + unit) / kLanes - 1]) == 0)
    begin += unit;
  return begin;
}

// Looks at the words from `begin` on, at most up to `end`: a tile of them, or in a sparse part of the mask
// only as many as alike keep something, or all that keep nothing; beside states of 8 bits whole blocks. The
// last word may be cut.
inline Kept look(const SliceStep& step, int64_t begin, int64_t end, bool sparse) {
  const uint32_t* mask = step.slice().mask;
  const int64_t stop = end_of_tile(begin, end), at_once = step.in_blocks() ? kBlock : kLanes;
  Kept kept{begin};
  if (sparse && (kept.end = first_kept(mask, begin, end, at_once)) > begin) return {kept.end, false, false};
  for (int64_t next; kept.end < stop; kept.end = next) {
    next = std::min(kept.end + at_once, stop);
    uint32_t any = 0, left_out = 0;
    for (int64_t i = kept.end; i < next; i += kLanes) {
      const uint32_t there = next - i < kLanes ? ~(~uint32_t{0} << (next - i)) : ~uint32_t{0};
      any |= mask[i / kLanes] & there;
      left_out |= ~mask[i / kLanes] & there;
    }
    if (sparse && kept.end > begin && kept.any != (any != 0)) break;
    kept.any |= any != 0;
    kept.all &= left_out == 0;
  }
  return kept;
}

// Fetches what will be read in a sparse part of a mask, where the processor sees no pattern in it, and would
// wait for each. Elsewhere all that follows is fetched, as without a mask (update.h).
inline void prefetch_used(const SliceStep& step, int64_t begin, int64_t end) {
  const auto fetch = [](const Array& array, int64_t i) {
    const char* first = static_cast<const char*>(array.at(i));
    for (size_t line = 0; line < kLanes * array.bytes; line += kCacheLine) __builtin_prefetch(first + line);
  };
  for (int64_t word = begin / kLanes; word < end / kLanes; ++word) {
    if (step.slice().mask[word] == 0) continue;
    fetch(step.grad(), word * kLanes);
    step.each_written([&](const Array& array) { fetch(array, word * kLanes); });
  }
}

// The words of which the elements from `begin` up to `end` have a part.
struct Words {
  int all, used = 0, full = 0;  // of them keep something; keep all

  Words(const uint32_t* mask, int64_t begin, int64_t end)
      : all(static_cast<int>(mask_words(end) - begin / kLanes)) {
    const uint32_t* words = mask + begin / kLanes;
    for (int word = 0; word < all; ++word) {
      used += words[word] != 0;
      full += words[word] == ~uint32_t{0};
    }
  }

  // So few keep something that the others are better left out than computed along.
  bool sparse() const { return used * kSparse <= all; }
};

inline void run_masked(const SliceStep& step, int64_t begin, int64_t end) {
  const uint32_t* mask = step.slice().mask;
  const bool zero = step.slice().mask_mode == MaskMode::kZero;
  for (int64_t stop; begin < end; begin = stop) {
    stop = std::min(end, (begin / kMaskBlock + 1) * kMaskBlock);
    const Words words(mask, begin, stop);
    for (Kept kept; begin < stop; begin = kept.end) {
      const bool any = words.used != 0, alike = !any || words.full == words.all;
      kept = alike ? Kept{stop, any, any} : look(step, begin, stop, words.sparse());
      if (words.sparse()) prefetch_used(step, begin + kAhead, std::min(end, kept.end + kAhead));
      if (kept.all)
        step.run(begin, kept.end);
      else if (kept.any)
        step.run_selected(begin, kept.end, words.sparse() ? 0 : end - begin);
      else if (zero)
        clear_pruned(step, begin, kept.end);
    }
  }
}

}  // namespace grokfused::cpu
