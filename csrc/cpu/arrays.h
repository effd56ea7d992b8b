// The arrays of a tile, and how an element or two neighbours are read from them and written. It must not know
// what is computed in between.
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>

#include "../step/scalars.h"
#include "../step/storage.h"
#include "storage.h"

namespace grokfused::cpu {

// The arrays of a tile. What is written may be what is read, where both are stored alike.
struct Arrays {
  const void *grad, *param, *rest;  // the rest: KahanComp
  const void* states[kMaxStates];
  void *new_param, *new_rest;
  void* new_states[kMaxStates];
  uint32_t random_key, first;  // what the random bits of the tile's first element are made of
  const uint32_t*
      kept;  // words of a mask (../step/mask.h), of which the first one begins with the tile; or null
  const void* zeros;  // what the others become; null where they stay what they are
  const void *others_param, *others_states[kMaxStates];  // either of it, so that one operation chooses
  int64_t to_come;     // elements, from the tile's first on, that are stepped one after the other
  const Arrays* next;  // what begins after those: of it, what is read, and its own `to_come`; or null

  GROK_HD const void* instead_of(const void* before) const { return zeros ? zeros : before; }
};

// bfloat16 where no NaN has bits in its lower half: no rounding has to ask for them, which saves up to a
// third of the time. What a CPU computes of a NaN keeps its bits, and one of its own has only the uppermost
// ones.
struct BFloat16OfShortNans : BFloat16 {
  static GROK_HD Stored round(float value) { return float32_to_bfloat16<Nans::kShort>(value); }
  static GROK_HD Stored round_stochastically(float value, uint32_t random_bits) {
    return float32_to_bfloat16_stochastic<Nans::kShort>(value, random_bits);
  }
};

// How parameters and states are stored, and rounded as they are written.
template <class ParamFormat, class StateFormat, Rounding kRoundingOfParam, Rounding kRoundingOfStates>
struct StoredAs {
  template <class Format>
  static constexpr bool kIsBFloat16 = std::is_same_v<Format, BFloat16>;
  // Beside float32 what comes into a state is made so as it is read (`shortened`).
  static constexpr bool kShortens = std::is_same_v<ParamFormat, Float32> && kIsBFloat16<StateFormat>;
  static constexpr bool kShortNans = kShortens || (kIsBFloat16<ParamFormat> && kIsBFloat16<StateFormat>);
  template <class Format>
  using OfShortNans = std::conditional_t<kShortNans && kIsBFloat16<Format>, BFloat16OfShortNans, Format>;
  using Param = OfShortNans<ParamFormat>;
  using State = OfShortNans<StateFormat>;
  static constexpr Rounding kOfParam = kRoundingOfParam, kOfStates = kRoundingOfStates;
  static constexpr bool kKeepsRest = kOfParam == Rounding::kKahan;
  static constexpr size_t kParamBytes = sizeof(typename Param::Stored);
  static constexpr size_t kStateBytes = sizeof(typename State::Stored);
  static constexpr bool kInPairs = kParamBytes == 2 || kStateBytes == 2;
  // Of a strip: a line of the narrowest array. The compiler knows how many they are, and so writes one piece
  // of code without a loop, instead of a loop, its ends and one for what is left.
  static constexpr int kStrip = static_cast<int>(kCacheLine / std::min(kParamBytes, kStateBytes));

  template <class Real>
  static GROK_HD Real shortened(Real value) {
    return kShortens && value != value ? std::numeric_limits<Real>::quiet_NaN() : value;
  }
};
using AsFloat32 = StoredAs<Float32, Float32, Rounding::kNearest, Rounding::kNearest>;

// An element of a tile, by the strip in which it lies: a compiler counts the one in a register, and knows the
// other of each lane.
struct At {
  int64_t strip;
  int lane;
  GROK_HD int64_t place() const { return strip + lane; }
  GROK_HD uint32_t index() const { return static_cast<uint32_t>(strip) + static_cast<uint32_t>(lane); }
  GROK_HD At next() const { return {strip, lane + 1}; }
};

template <class Format>
GROK_HD auto read(const void* stored, At at) {
  return Format::widen(static_cast<const typename Format::Stored*>(stored)[at.place()]);
}

GROK_HD Where where(uint32_t kept) { return {kept, MaskMode::kFreeze}; }

// The bits of a strip, in a word of its own: bit `lane` is that of a lane.
template <bool kMasked>
GROK_HD uint32_t kept_in(const Arrays& arrays, int64_t strip) {
  return kMasked ? arrays.kept[strip / kLanes] >> strip % kLanes : 0;
}

// `lanes`: of the strip. A function of its own: of a struct in the body of a simd loop g++ makes an array,
// which it does not vectorise.
template <bool kMasked, class Stored>
GROK_HD void write(uint32_t lanes, Stored* to, const void* others, Stored stepped, At at) {
  if constexpr (kMasked)
    stepped = masked_stored(where(kept_in_lane(lanes, at.lane)), stepped,
                            static_cast<const Stored*>(others)[at.place()]);
  to[at.place()] = stepped;
}

// Two neighbours at once where values of 16 bits are read or written: both lie in one word, out of which a
// shift and a mask bring them. One by one they were spread over vectors and gathered again.
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the first one is the lower half");

GROK_HD uint32_t word_at(const void* stored, At at) {
  uint32_t word;
  std::memcpy(&word, static_cast<const char*>(stored) + sizeof word / 2 * at.place(), sizeof word);
  return word;
}

// What two neighbours have in one array.
template <class Format>
GROK_HD void read_two(const void* stored, At at, typename Format::Real& first,
                      typename Format::Real& second) {
  if constexpr (sizeof(typename Format::Stored) == 2) {
    const uint32_t word = word_at(stored, at);
    first = Format::widen(static_cast<uint16_t>(word));
    second = Format::widen(static_cast<uint16_t>(word >> 16));
  } else {
    first = read<Format>(stored, at);
    second = read<Format>(stored, at.next());
  }
}

template <bool kMasked, class Stored>
GROK_HD void write_two(uint32_t lanes, void* to, const void* others, Stored first, Stored second, At at) {
  if constexpr (sizeof(Stored) == 2) {
    uint32_t word = first | static_cast<uint32_t>(second) << 16;
    if constexpr (kMasked) {
      const uint32_t kept =
          (kept_in_lane(lanes, at.lane) & 0xffffu) | (kept_in_lane(lanes, at.lane + 1) & 0xffff0000u);
      word = masked(where(kept), word, word_at(others, at));
    }
    std::memcpy(static_cast<char*>(to) + sizeof word / 2 * at.place(), &word, sizeof word);
  } else {
    write<kMasked>(lanes, static_cast<Stored*>(to), others, first, at);
    write<kMasked>(lanes, static_cast<Stored*>(to), others, second, at.next());
  }
}

// The first one's number is even, as a tile and a strip begin with such.
template <class Stored>
GROK_HD void draw_two(const Arrays& arrays, At at, Draws& first, Draws& second) {
  const uint32_t even = arrays.first + at.index();
  if constexpr (Stored::kOfStates == Rounding::kStochastic) {
    const uint32_t bits = random_bits(arrays.random_key, even);
    first.state = half_of(bits, 0);
    second.state = half_of(bits, 1);
  }
  if constexpr (Stored::kOfParam == Rounding::kStochastic) {
    const uint32_t bits = random_bits(arrays.random_key, even + 1);
    first.param = half_of(bits, 0);
    second.param = half_of(bits, 1);
  }
}

// A processor follows so many arrays by itself, but stops at each page: so elements that come soon are
// fetched, a line or two of each array between two strips. Many at once would wait for one another, and the
// arithmetic for them.
constexpr int kFetchAhead = 512;

template <class Stored>
GROK_HD void fetch(const void* stored, int64_t begin, int size) {
  const auto* first = reinterpret_cast<const char*>(static_cast<const Stored*>(stored) + begin);
  for (size_t line = 0; line < size * sizeof(Stored); line += kCacheLine) __builtin_prefetch(first + line);
}

template <class Stored, int kStates>
GROK_HD void fetch_all(const Arrays& arrays, int64_t begin) {
  using Param = typename Stored::Param::Stored;
  fetch<Param>(arrays.grad, begin, Stored::kStrip);
  fetch<Param>(arrays.param, begin, Stored::kStrip);
  if (Stored::kKeepsRest) fetch<Param>(arrays.rest, begin, Stored::kStrip);
  for (int place = 0; place < kStates; ++place)
    fetch<typename Stored::State::Stored>(arrays.states[place], begin, Stored::kStrip);
}

// Of a small tensor much is read before anything of it could have been fetched: so those before it do that.
template <class Stored, int kStates>
GROK_HD void fetch_ahead(const Arrays& arrays, int64_t begin) {
  const int64_t then = begin + kFetchAhead;
  if (then < arrays.to_come)
    fetch_all<Stored, kStates>(arrays, then);
  else if (arrays.next && then - arrays.to_come < arrays.next->to_come)
    fetch_all<Stored, kStates>(*arrays.next, then - arrays.to_come);
}

}  // namespace grokfused::cpu
