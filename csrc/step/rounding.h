// How a float32 becomes 16 bits and back, and where random bits come from. Integer code on purpose:
// compilers and devices disagree on their own conversions, integers do not. It knows no tensor.
#pragma once

#include "portable.h"

namespace grokfused {

constexpr uint32_t kFloat32Infinity = 0x7f800000u;
constexpr uint32_t kSignBit = 0x80000000u;

GROK_HD bool is_nan(uint32_t bits) { return (bits & ~kSignBit) > kFloat32Infinity; }

GROK_HD float bfloat16_to_float32(uint16_t bits) { return float_of(uint32_t{bits} << 16); }

// Which NaNs may be among numbers: with any bits, or with none in the lower half, as those of bfloat16.
enum class Nans : uint8_t { kAny, kShort };

// The bits of a number that something was computed to be, and what a rounding adds to them; to those of a NaN
// nothing, as the carry would turn one of a large payload into a zero. The upper half of what arithmetic
// makes tells that it is one. Asked as of numbers, because of bits a comparison costs three instructions.
template <Nans kNans>
GROK_HD uint32_t bits_to_cut(float value, uint32_t added) {
  const uint32_t bits = bits_of(value);
  return kNans == Nans::kAny && value != value ? bits : bits + added;
}

template <Nans kNans = Nans::kAny>
GROK_HD uint16_t float32_to_bfloat16(float value) {
  const uint32_t half_minus_tie = 0x7fffu + ((bits_of(value) >> 16) & 1u);  // ties go to the even neighbour
  return static_cast<uint16_t>(bits_to_cut<kNans>(value, half_minus_tie) >> 16);
}

// Rounds up with probability equal to the fraction cut off, so that the mean of many roundings is
// the value itself: a second moment that grows by 0.1 % a step would otherwise never move in 8
// bits.
template <Nans kNans = Nans::kAny>
GROK_HD uint16_t float32_to_bfloat16_stochastic(float value, uint32_t random_bits) {
  return static_cast<uint16_t>(bits_to_cut<kNans>(value, random_bits) >> 16);
}

GROK_HD float float16_to_float32(uint16_t bits) {
  const uint32_t magnitude = (bits & 0x7fffu) << 13;
  // 2^112 moves the exponent from float16's bias to float32's: exact, subnormals included.
  const float scaled = float_of(magnitude) * 0x1p112f;
  const uint32_t special = magnitude | kFloat32Infinity;  // infinity and NaN keep their payload
  const uint32_t sign = uint32_t{bits & 0x8000u} << 16;
  return float_of((magnitude >= (0x7c00u << 13) ? special : bits_of(scaled)) | sign);
}

GROK_HD uint16_t float32_to_float16(float value) {
  constexpr uint32_t kSmallestNormal = 0x38800000u;  // 2^-14
  constexpr uint32_t kOverflow = 0x477ff000u;        // 65520: from here on the nearest is infinity
  const uint32_t bits = bits_of(value);
  const uint32_t magnitude = bits & ~kSignBit;
  // Below 2^-14 float16 counts in units of 2^-24, which is what adding 1/2 makes float32 count in:
  // the addition itself rounds, to nearest even.
  const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
  const uint32_t half_minus_tie = 0xfffu + ((magnitude >> 13) & 1u);
  const uint32_t normal = (magnitude + half_minus_tie - (112u << 23)) >> 13;
  uint32_t rounded = magnitude < kSmallestNormal ? subnormal : normal;
  rounded = magnitude >= kOverflow ? 0x7c00u : rounded;
  rounded = is_nan(bits) ? 0x7e00u : rounded;
  return static_cast<uint16_t>(rounded | ((bits & kSignBit) >> 16));
}

// The same for float16. After the largest number comes infinity, at the distance of a further number, in both
// formats; so a value between the two may become infinite where the nearest would not be.
GROK_HD uint16_t float32_to_float16_stochastic(float value, uint32_t random_bits) {
  constexpr uint32_t kSmallestNormal = 0x38800000u;  // 2^-14
  constexpr uint32_t kInfinity = 0x47800000u;        // 65536, of which a carry makes nothing else
  const uint32_t bits = bits_of(value);
  const uint32_t whole = bits & ~kSignBit;
  const uint32_t magnitude = whole < kInfinity ? whole : kInfinity;
  // In units of 2^-40: the sixteen bits after those that stay. Chosen before the conversion, which is only
  // defined for what fits an integer.
  const float small = float_of(magnitude < kSmallestNormal ? magnitude : kSmallestNormal) * 0x1p40f;
  const uint32_t subnormal = (static_cast<uint32_t>(static_cast<int32_t>(small)) + random_bits) >> 16;
  const uint32_t normal = (magnitude - (112u << 23) + (random_bits >> 3)) >> 13;
  const uint32_t carried = magnitude < kSmallestNormal ? subnormal : normal;
  const uint32_t rounded = is_nan(bits) ? 0x7e00u : carried;
  return static_cast<uint16_t>(rounded | ((bits & kSignBit) >> 16));
}

// A bijection of 32 bits in which each input bit flips each output bit about half the time (the
// constants are Chris Wellons' "lowbias32").
GROK_HD uint32_t scramble(uint32_t bits) {
  bits = (bits ^ (bits >> 16)) * 0x7feb352du;
  bits = (bits ^ (bits >> 15)) * 0x846ca68bu;
  return bits ^ (bits >> 16);
}

GROK_HD uint32_t random_key(uint32_t seed, uint32_t step) { return scramble(scramble(seed) ^ step); }

// Over all keys the bits of every i are exactly uniform. The whole of `scramble`: with less of it numbers
// that are a power of two apart tell something of each other.
GROK_HD uint32_t random_bits(uint32_t key, uint32_t i) { return scramble(key ^ i); }

// Of the 32 bits that two neighbours share, the sixteen of element i.
GROK_HD uint32_t half_of(uint32_t bits, uint32_t i) { return i & 1u ? bits & 0xffffu : bits >> 16; }

// What all states of element i are rounded with: each without bias, and equals stay equal. Their bits are
// those of even numbers, those of parameters of odd ones, so that neither tells anything of the other.
// Elements 2^32 apart in one tensor share theirs, which biases neither.
GROK_HD uint32_t state_draw(uint32_t key, uint32_t i) { return half_of(random_bits(key, i & ~1u), i); }
GROK_HD uint32_t param_draw(uint32_t key, uint32_t i) { return half_of(random_bits(key, i | 1u), i); }
struct Draws {
  uint32_t state = 0, param = 0;
};

}  // namespace grokfused
