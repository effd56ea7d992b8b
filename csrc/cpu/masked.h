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

// Of whole words, the last one of which may be cut.
inline Kept look_at(const uint32_t* mask, int64_t begin, int64_t end) {
  uint32_t any = 0, all = ~uint32_t{0};
  int64_t i = begin / kLanes;
  for (; i < end / kLanes; ++i) {
    any |= mask[i];
    all &= mask[i];
  }
  if (const int64_t there = end % kLanes) {
    any |= mask[i] & ~(~uint32_t{0} << there);
    all &= mask[i] | ~uint32_t{0} << there;
  }
  return {end, any != 0, all == ~uint32_t{0}};
}

// Looks from `begin` on for what alike keeps something, or nothing, at most up to `end`: at tiles, or in a
// sparse part of the mask at words, of one tile; beside states of 8 bits at whole blocks.
inline Kept look(const SliceStep& step, int64_t begin, int64_t end, bool sparse) {
  const uint32_t* mask = step.slice().mask;
  const int64_t at_once = step.in_blocks() ? kBlock : kLanes, stop = sparse ? end_of_tile(begin, end) : end;
  if (const int64_t kept = sparse ? first_kept(mask, begin, end, at_once) : begin; kept > begin)
    return {kept, false, false};
  const auto next_to = [&](int64_t i) {
    return look_at(mask, i, sparse ? std::min(i + at_once, stop) : end_of_tile(i, stop));
  };
  Kept kept = next_to(begin);
  for (Kept next; kept.end < stop; kept.end = next.end) {
    next = next_to(kept.end);
    if (next.any != kept.any) break;
    kept.all &= next.all;
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
        step.run(begin, kept.end, (alike ? end : kept.end) - begin);
      else if (kept.any)
        step.run_selected(begin, kept.end, words.sparse() ? 0 : end - begin);
      else if (zero)
        clear_pruned(step, begin, kept.end);
    }
  }
}

}  // namespace grokfused::cpu
