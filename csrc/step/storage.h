// Which type an array has in memory, and how a float32 value goes in and comes out. It must not
// know what the value means: the rooms above see float32 only.
#pragma once

#include <string_view>

#include "element.h"
#include "fail.h"
#include "mask.h"
#include "rounding.h"

namespace grokfused {

enum class Format : uint8_t { kFloat32, kBFloat16, kFloat16 };

// How what does not fit is rounded. Kahan's: to nearest, and what that cuts off is kept in an array of its
// own, for the next step to add (arXiv:2010.06192; Kahan's sum).
enum class Rounding : uint8_t { kNearest, kStochastic, kKahan };

struct Float32 {
  static constexpr Format kFormat = Format::kFloat32;
  using Stored = float;
  static GROK_HD float widen(Stored stored) { return stored; }
  static GROK_HD Stored round(float value) { return value; }
  static GROK_HD Stored round_stochastically(float value, uint32_t) { return value; }
};

struct BFloat16 {
  static constexpr Format kFormat = Format::kBFloat16;
  using Stored = uint16_t;
  static GROK_HD float widen(Stored stored) { return bfloat16_to_float32(stored); }
  static GROK_HD Stored round(float value) { return float32_to_bfloat16(value); }
  static GROK_HD Stored round_stochastically(float value, uint32_t random_bits) {
    return float32_to_bfloat16_stochastic(value, random_bits);
  }
};

struct Float16 {
  static constexpr Format kFormat = Format::kFloat16;
  using Stored = uint16_t;
  static GROK_HD float widen(Stored stored) { return float16_to_float32(stored); }
  static GROK_HD Stored round(float value) { return float32_to_float16(value); }
  static GROK_HD Stored round_stochastically(float value, uint32_t random_bits) {
    return float32_to_float16_stochastic(value, random_bits);
  }
};

template <class Format>
GROK_HD typename Format::Stored rounded(float value, Rounding rounding, uint32_t random_bits) {
  return rounding == Rounding::kStochastic ? Format::round_stochastically(value, random_bits)
                                           : Format::round(value);
}

// Of parameters under Kahan's rounding. No field of an element: it is added to the parameter as that is read,
// and made of it again as that is written.
struct KahanComp {
  static constexpr StateRow kRow{"kahan_comp", /*like_param=*/true};
};

// 0 where the rounded value is infinite or NaN: the next step shall find it so, and not inf - inf.
template <class Format>
GROK_HD float cut_off(float value) {
  const float rest = value - Format::widen(Format::round(value));
  return (bits_of(rest) & ~kSignBit) < kFloat32Infinity ? rest : 0.0f;
}

GROK_HD uint32_t stored_bits(float stored) { return bits_of(stored); }
GROK_HD uint32_t stored_bits(uint16_t stored) { return stored; }
template <class Stored>
GROK_HD Stored of_bits(uint32_t bits) {
  if constexpr (sizeof(Stored) == sizeof(float)) return float_of(bits);
  return static_cast<Stored>(bits);
}

// A stored value, as the mask leaves it.
template <class Stored>
GROK_HD Stored masked_stored(Where where, Stored stepped, Stored before) {
  return of_bits<Stored>(masked(where, stored_bits(stepped), stored_bits(before)));
}

inline Format state_format_named(std::string_view dtype) {
  if (dtype == "float32") return Format::kFloat32;
  if (dtype == "bfloat16") return Format::kBFloat16;
  fail("states must be float32 or bfloat16, got ", dtype);
}

inline Format param_format_named(std::string_view dtype) {
  if (dtype == "float32") return Format::kFloat32;
  if (dtype == "bfloat16") return Format::kBFloat16;
  if (dtype == "float16") return Format::kFloat16;
  fail("params must be float32, bfloat16 or float16, got ", dtype);
}

// Of float32 nothing is cut off, whatever the rounding.
inline Rounding state_rounding_named(std::string_view name, Format format) {
  if (name != "nearest" && name != "stochastic")
    fail("state_rounding must be nearest or stochastic, got ", name);
  return format == Format::kFloat32 || name == "nearest" ? Rounding::kNearest : Rounding::kStochastic;
}

inline Rounding param_rounding_named(std::string_view name, Format format) {
  if (name != "nearest" && name != "stochastic" && name != "kahan")
    fail("param_rounding must be nearest, stochastic or kahan, got ", name);
  if (format == Format::kFloat32 || name == "nearest") return Rounding::kNearest;
  return name == "kahan" ? Rounding::kKahan : Rounding::kStochastic;
}

template <class Use>
void with_state_format(Format format, Use&& use) {
  if (format == Format::kFloat32) return use(Float32{});
  return use(BFloat16{});
}

}  // namespace grokfused
