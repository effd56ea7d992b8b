// Which type an array has in memory, and how a value goes in and comes out. It must not know what the value
// means: the rooms above see float32 only, or float64 where parameters are of that.
#pragma once

#include <string_view>

#include "element.h"
#include "fail.h"
#include "mask.h"
#include "rounding.h"

namespace grokfused {

enum class Format : uint8_t { kFloat32, kBFloat16, kFloat16, kFloat64, kBlock8 };

// How what does not fit is rounded. Kahan's: to nearest, and what that cuts off is kept in an array of its
// own, for the next step to add (arXiv:2010.06192; Kahan's sum).
enum class Rounding : uint8_t { kNearest, kStochastic, kKahan };

// `Real`: in which numbers a step of such parameters is computed.
struct Float64 {
  static constexpr Format kFormat = Format::kFloat64;
  using Stored = double;
  using Real = double;
  static GROK_HD double widen(Stored stored) { return stored; }
  static GROK_HD Stored round(double value) { return value; }
  static GROK_HD Stored round_stochastically(double value, uint32_t) { return value; }
};

struct Float32 {
  static constexpr Format kFormat = Format::kFloat32;
  using Stored = float;
  using Real = float;
  static GROK_HD float widen(Stored stored) { return stored; }
  static GROK_HD Stored round(float value) { return value; }
  static GROK_HD Stored round_stochastically(float value, uint32_t) { return value; }
};

struct BFloat16 {
  static constexpr Format kFormat = Format::kBFloat16;
  using Stored = uint16_t;
  using Real = float;
  static GROK_HD float widen(Stored stored) { return bfloat16_to_float32(stored); }
  static GROK_HD Stored round(float value) { return float32_to_bfloat16(value); }
  static GROK_HD Stored round_stochastically(float value, uint32_t random_bits) {
    return float32_to_bfloat16_stochastic(value, random_bits);
  }
};

struct Float16 {
  static constexpr Format kFormat = Format::kFloat16;
  using Stored = uint16_t;
  using Real = float;
  static GROK_HD float widen(Stored stored) { return float16_to_float32(stored); }
  static GROK_HD Stored round(float value) { return float32_to_float16(value); }
  static GROK_HD Stored round_stochastically(float value, uint32_t random_bits) {
    return float32_to_float16_stochastic(value, random_bits);
  }
};

template <class Format>
GROK_HD typename Format::Stored rounded(typename Format::Real value, Rounding rounding,
                                        uint32_t random_bits) {
  return rounding == Rounding::kStochastic ? Format::round_stochastically(value, random_bits)
                                           : Format::round(value);
}

// What element i of a tensor is rounded with.
GROK_HD Draws draws_of(Rounding of_param, Rounding of_states, uint32_t key, uint32_t i) {
  return {of_states == Rounding::kStochastic ? state_draw(key, i) : 0,
          of_param == Rounding::kStochastic ? param_draw(key, i) : 0};
}

// Of parameters under Kahan's rounding. No field of an element: it is added to the parameter as that is read,
// and made of it again as that is written.
struct KahanComp {
  static constexpr StateRow kRow{"kahan_comp", 1, Of::kParam};
};

// Of states in 8 bits (block8.h): four bytes a block. No field of an element either.
struct BlockBases {
  static constexpr StateRow kRow{"block_bases", kOnePerBlock, Of::kBases};
};

// 0 where the rounded value is infinite or NaN: the next step shall find it so, and not inf - inf.
template <class Format>
GROK_HD float cut_off(float value) {
  const float rest = value - Format::widen(Format::round(value));
  return (bits_of(rest) & ~kSignBit) < kFloat32Infinity ? rest : 0.0f;
}

// A value as it comes back from an array that may have 16 bits.
GROK_HD float as_stored(float value, Format format) {
  const bool is_narrow = format == Format::kBFloat16;
  return is_narrow ? BFloat16::widen(BFloat16::round(value)) : value;
}
GROK_HD double as_stored(double value, Format) { return value; }

GROK_HD uint64_t stored_bits(double stored) { return bits_of(stored); }
GROK_HD uint32_t stored_bits(float stored) { return bits_of(stored); }
GROK_HD uint32_t stored_bits(uint16_t stored) { return stored; }

// A stored value, as the mask leaves it.
template <class Stored>
GROK_HD Stored masked_stored(Where where, Stored stepped, Stored before) {
  const auto bits = masked(where, stored_bits(stepped), stored_bits(before));
  if constexpr (sizeof(Stored) < sizeof bits) return static_cast<Stored>(bits);
  Stored stored;
  std::memcpy(&stored, &bits, sizeof stored);
  return stored;
}

// Of states, or of a window of gradients.
inline Format state_format_named(std::string_view dtype, Format param) {
  if (param == Format::kFloat64) {
    if (dtype == "float64") return Format::kFloat64;
    fail("states of float64 parameters must be float64, got ", dtype);
  }
  if (dtype == "float32") return Format::kFloat32;
  if (dtype == "bfloat16") return Format::kBFloat16;
  if (dtype == "uint8") return Format::kBlock8;
  fail("states must be float32, bfloat16 or uint8, got ", dtype);
}

inline Format param_format_named(std::string_view dtype) {
  if (dtype == "float32") return Format::kFloat32;
  if (dtype == "bfloat16") return Format::kBFloat16;
  if (dtype == "float16") return Format::kFloat16;
  if (dtype == "float64") return Format::kFloat64;
  fail("params must be float32, bfloat16, float16 or float64, got ", dtype);
}

inline bool is_16_bits(Format format) { return format == Format::kBFloat16 || format == Format::kFloat16; }

// Of others nothing is cut off, whatever the rounding.
inline Rounding state_rounding_named(std::string_view name, Format format) {
  if (name != "nearest" && name != "stochastic")
    fail("state_rounding must be nearest or stochastic, got ", name);
  return !is_16_bits(format) || name == "nearest" ? Rounding::kNearest : Rounding::kStochastic;
}

inline Rounding param_rounding_named(std::string_view name, Format format) {
  if (name != "nearest" && name != "stochastic" && name != "kahan")
    fail("param_rounding must be nearest, stochastic or kahan, got ", name);
  if (!is_16_bits(format) || name == "nearest") return Rounding::kNearest;
  return name == "kahan" ? Rounding::kKahan : Rounding::kStochastic;
}

// Of states beside parameters of one format.
template <class Param, class Use>
void with_state_format(Format format, Use&& use) {
  if constexpr (Param::kFormat == Format::kFloat64) {
    use(Float64{});
  } else {
    if (format == Format::kFloat32) return use(Float32{});
    use(BFloat16{});
  }
}

}  // namespace grokfused
