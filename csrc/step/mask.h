// Which elements of a tensor take the step, one bit each, and what becomes of the others. It must not know
// what a step is, nor what the values mean.
#pragma once

#include <cstdint>

#include "portable.h"

namespace grokfused {

// What becomes of an element that the mask leaves out: it is 0, or it stays as it is. The numbers are the
// places of the names in grokfused.mask.MODES; tests/test_contract.py compares the two.
enum class MaskMode : uint32_t { kZero = 0, kFreeze = 1 };

// Elements to a word: bit i % kLanes of word i / kLanes belongs to element i.
constexpr int kLanes = 32;

GROK_HD int64_t mask_words(int64_t size) { return (size + kLanes - 1) / kLanes; }

// The bits of `count` elements from i on, which lie in one word; the first one is the lowest. No mask keeps
// all.
GROK_HD uint32_t kept_lanes(const uint32_t* mask, int64_t i, int count) {
  const uint32_t all = ~uint32_t{0} >> (kLanes - count);
  if (!mask) return all;
  assume_global(mask);
  return mask[static_cast<uint64_t>(i) / kLanes] >> (static_cast<uint64_t>(i) % kLanes) & all;
}

// What becomes of an element: which bits are taken of its new value and which of its old one, all or none.
struct Where {
  uint32_t stepped, before;

  // `kept` is all ones or 0.
  GROK_HD Where(uint32_t kept, MaskMode mode) : stepped(kept), before(~kept & -static_cast<uint32_t>(mode)) {}
};

// All ones where bit `lane` is set, or else 0.
GROK_HD uint32_t kept_bits(uint32_t lanes, int lane) { return -(lanes >> lane & 1u); }

// By selection, because no multiplication takes a NaN away; of bits, because compilers make of a choice a
// load that skips what is not chosen, and on some processors a loop of those runs at half the speed of
// memory.
template <class Bits>
GROK_HD Bits masked(Where where, Bits stepped, Bits before) {
  const auto wide = [](uint32_t bits) { return static_cast<Bits>(static_cast<int32_t>(bits)); };
  return (stepped & wide(where.stepped)) | (before & wide(where.before));
}

}  // namespace grokfused
