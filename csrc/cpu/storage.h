// How parameters go into their format, and what else is done to an array in a loop of its own. It must not
// know what is computed.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../step/storage.h"

namespace grokfused::cpu {

constexpr size_t kCacheLine = 64;

// Rounds the values of parameters. What the rounding cuts off is stored as the rest under Kahan's, which
// alone has one; `key` and `first` are what the random bits of the first element are made of, for the
// stochastic one.
using Narrow = void (*)(const float* values, void* stored, void* rest, int size, uint32_t key,
                        uint32_t first);

// Null for float32 and float64, which stay as they are.
Narrow narrowing(Format format, Rounding rounding);

// 16 bits as real numbers, with their rest (minus 0 where there is none).
using Widen = void (*)(const void* stored, const void* rest, float* values, int size);

// Null for float32 and float64.
Widen widening(Format format);

size_t bytes_of(Format format);

// As kept_bits (../step/mask.h). By a table, as not every processor shifts each lane of a vector by a number
// of its own.
struct EachBit {
  uint32_t bits[kLanes];
  constexpr EachBit() : bits() {
    for (int lane = 0; lane < kLanes; ++lane) bits[lane] = 1u << lane;
  }
};
alignas(kCacheLine) inline constexpr EachBit kBitOf;
GROK_HD uint32_t kept_in_lane(uint32_t lanes, int lane) {
  return -static_cast<uint32_t>((lanes & kBitOf.bits[lane]) != 0);
}

// Writes stored values of so many bytes, 2, 4 or 8, where the mask keeps them; its first bit is the first
// one's.
void select(size_t bytes, const void* stepped, const uint32_t* mask, MaskMode mode, void* stored, int size);

// True where all bits of so many bytes are 0.
bool all_zero(const void* stored, int64_t bytes);

}  // namespace grokfused::cpu
