// Which type an array has in memory, and how a float32 value goes in and comes out. It must not
// know what the value means: the rooms above see float32 only.
#pragma once

#include <string_view>

#include "fail.h"
#include "mask.h"
#include "rounding.h"

namespace grokfused {

struct Float32 {
  using Stored = float;
  static constexpr bool kUsesRandomBits = false, kUsesComp = false;
  static GROK_HD float widen(Stored stored) { return stored; }
  static GROK_HD Stored round(float value, uint32_t) { return value; }
};

struct BFloat16 {
  using Stored = uint16_t;
  static constexpr bool kUsesRandomBits = false, kUsesComp = false;
  static GROK_HD float widen(Stored stored) { return bfloat16_to_float32(stored); }
  static GROK_HD Stored round(float value, uint32_t) { return float32_to_bfloat16(value); }
  static GROK_HD Stored round_stochastically(float value, uint32_t random_bits) {
    return float32_to_bfloat16_stochastic(value, random_bits);
  }
};

struct Float16 {
  using Stored = uint16_t;
  static constexpr bool kUsesRandomBits = false, kUsesComp = false;
  static GROK_HD float widen(Stored stored) { return float16_to_float32(stored); }
  static GROK_HD Stored round(float value, uint32_t) { return float32_to_float16(value); }
  static GROK_HD Stored round_stochastically(float value, uint32_t random_bits) {
    return float32_to_float16_stochastic(value, random_bits);
  }
};

template <class Format>
struct Stochastic : Format {
  static constexpr bool kUsesRandomBits = true;
  static GROK_HD typename Format::Stored round(float value, uint32_t random_bits) {
    return Format::round_stochastically(value, random_bits);
  }
};

// To nearest, and what that cuts off is kept in a second array, for the next step to add
// (arXiv:2010.06192; Kahan's sum).
template <class Format>
struct Kahan : Format {
  static constexpr bool kUsesComp = true;
};

// 0 where the rounded value is infinite or NaN: the next step shall find it so, and not inf - inf.
template <class Storage>
GROK_HD float cut_off(float value) {
  const float rest = value - Storage::widen(Storage::round(value, 0));
  return (bits_of(rest) & ~kSignBit) < kFloat32Infinity ? rest : 0.0f;
}

GROK_HD uint32_t stored_bits(float stored) { return bits_of(stored); }
GROK_HD uint32_t stored_bits(uint16_t stored) { return stored; }
template <class Stored>
GROK_HD Stored of_bits(uint32_t bits) {
  if constexpr (sizeof(Stored) == sizeof(float)) return float_of(bits);
  return static_cast<Stored>(bits);
}

template <class Storage>
GROK_HD void* at(void* array, int64_t i) {
  return static_cast<typename Storage::Stored*>(array) + i;
}

template <class Storage>
GROK_HD const void* at(const void* array, int64_t i) {
  return static_cast<const typename Storage::Stored*>(array) + i;
}

template <class Storage>
GROK_HD float load(const void* array, int64_t i) {
  return Storage::widen(static_cast<const typename Storage::Stored*>(array)[i]);
}

template <class Storage>
GROK_HD void store(void* array, int64_t i, float value, uint32_t random_bits, Where where) {
  auto& stored = static_cast<typename Storage::Stored*>(array)[i];
  const uint32_t bits = masked(where, stored_bits(Storage::round(value, random_bits)), stored_bits(stored));
  stored = of_bits<typename Storage::Stored>(bits);
}

template <class Use>
void with_param_format(std::string_view dtype, Use&& use) {
  if (dtype == "float32") return use(Float32{});
  if (dtype == "bfloat16") return use(BFloat16{});
  if (dtype == "float16") return use(Float16{});
  fail("params must be float32, bfloat16 or float16, got ", dtype);
}

// Of float32 nothing is cut off, whatever the rounding.
template <class Format, class Use>
void with_param_rounding(std::string_view rounding, Use&& use) {
  if (rounding != "nearest" && rounding != "stochastic" && rounding != "kahan")
    fail("param_rounding must be nearest, stochastic or kahan, got ", rounding);
  if constexpr (sizeof(typename Format::Stored) == 2) {
    if (rounding == "stochastic") return use(Stochastic<Format>{});
    if (rounding == "kahan") return use(Kahan<Format>{});
  }
  return use(Format{});
}

template <class Use>
void with_state_storage(std::string_view dtype, std::string_view rounding, Use&& use) {
  if (rounding != "nearest" && rounding != "stochastic")
    fail("state_rounding must be nearest or stochastic, got ", rounding);
  if (dtype == "float32") return use(Float32{});
  if (dtype == "bfloat16" && rounding == "nearest") return use(BFloat16{});
  if (dtype == "bfloat16") return use(Stochastic<BFloat16>{});
  fail("states must be float32 or bfloat16, got ", dtype);
}

}  // namespace grokfused
