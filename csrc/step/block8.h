// States in 8 bits: how a number becomes a byte and back, by what its block shares. The truth is
// grokfused/backends/block8.py, which says why. Integers and exact operations only. It must not know what a
// number means, nor how a backend goes through a block.
#pragma once

#include "rounding.h"

namespace grokfused {

constexpr int kBlock = 64;  // elements that share bases; the last block of a tensor may have fewer
constexpr int kWords = 16;  // of four bytes: word j of a block holds elements j, j + 16, j + 32 and j + 48
constexpr int kToAWord = kBlock / kWords;
GROK_HD int64_t block_count(int64_t size) { return (size + kBlock - 1) / kBlock; }

// Where an element of a whole block has its byte.
GROK_HD constexpr int byte_of(int element) { return element % kWords * kToAWord + element / kWords; }

constexpr uint32_t kUnit8 = 1u << 19;        // what four bits of fraction tell apart
constexpr uint32_t kLargest8 = 0x7ef00000u;  // bits of 1.875 * 2^126

// What is measured of a number: bits that are the larger the larger it is. NaN and infinity saturate.
GROK_HD uint32_t size_of(float value) {
  const uint32_t size = bits_of(value) & 0x7fffffffu;
  return size < kLargest8 ? size : kLargest8;
}

// How a number is stored of which one window holds so many octaves. `base`: of its block. A code comes and
// goes as bits 19 to 26 of a word, where the fraction of a float32 begins: what else is in it says nothing.
template <bool kSigned>
struct Block8 {
  static constexpr int32_t kOctaves = kSigned ? 8 : 16;
  static constexpr uint32_t kSign = 128u << 19, kCode = 255u << 19;

  // Of a block whose largest number has this size. What a rounding may carry into the next octave counts as
  // in that.
  static GROK_HD uint32_t base_of(uint32_t largest) {
    const int32_t lowest = static_cast<int32_t>((largest + (kUnit8 - 1)) >> 23) - (kOctaves - 1);
    return static_cast<uint32_t>(lowest > 0 ? lowest : 0);
  }

  static GROK_HD float decode(uint32_t code, uint32_t base) {
    if constexpr (kSigned) {
      const uint32_t lowest = (base + 1) << 23;  // the bits of twice the width of the linear octave
      const float shifted = float_of((code & (kCode - kSign)) + lowest);
      const float half = shifted * 0.5f, width = float_of(lowest);
      const float size = shifted - (half > width ? half : width);
      return float_of(bits_of(size) | (code << 5 & 0x80000000u));
    } else {
      const uint32_t bits = code & kCode;
      return float_of(bits ? bits + (base << 23) : 0);
    }
  }

  // `draw`: in [0, kUnit8).
  static GROK_HD uint32_t encode(float value, uint32_t base, uint32_t draw) {
    return encode(size_of(value), value < 0, base, draw);
  }
  static GROK_HD uint32_t encode(uint32_t size, bool is_negative, uint32_t base, uint32_t draw) {
    if constexpr (kSigned) {
      const uint32_t lowest = (base + 1) << 23;
      const float shifted = float_of(size) + float_of(size > lowest ? size : lowest);
      const uint32_t code = bits_of(shifted) - lowest + draw;
      return is_negative ? code | kSign : code;
    } else {
      const int32_t rounded = static_cast<int32_t>(size - (base << 23) + draw);
      const int32_t least = static_cast<int32_t>(size < kUnit8 ? size : kUnit8);  // only 0 becomes 0
      return static_cast<uint32_t>(rounded > least ? rounded : least);
    }
  }
};

// The code of element `k` of a word, 0 to 3, as Block8 takes it; and a code of Block8's in the place of that
// element.
GROK_HD uint32_t code_in(uint32_t word, int k) {
  const int up = 19 - 8 * k;
  return up >= 0 ? word << up : word >> -up;
}
GROK_HD uint32_t in_word(uint32_t code, int k) {
  const int down = 19 - 8 * k;
  if (k == 0) return code >> down;  // above a code there is nothing
  return (down >= 0 ? code >> down : code << -down) & 0xffu << (8 * k);
}

// Whose random bits the four elements of a word share: word `j` of a block that begins with this element. An
// even number, as those of all states (rounding.h).
GROK_HD uint32_t block8_bits(uint32_t key, uint32_t first, uint32_t j) {
  return random_bits(key, first + 2 * j);
}

// What element `k` of a word, 0 to 3, draws of them: each takes other sixteen.
GROK_HD uint32_t block8_draw(uint32_t hash, int k) {
  const uint32_t turned = hash << 8 | hash >> 24;
  const uint32_t of_word[] = {hash >> 16, hash & 0xffffu, hash >> 8 & 0xffffu, turned & 0xffffu};
  return of_word[k] << 3;
}

}  // namespace grokfused
