// The arithmetic of a step: one simd loop over ElementStep, which widens what it reads and rounds the states.
// That is why their formats are compiled apart: only where reading, arithmetic and writing alternate does the
// processor do them at once. How a parameter of 16 bits is rounded is not its subject (storage.h), nor what a
// mask keeps of one: beside float32 parameters the loop is compiled once more, and chooses as it writes.
#pragma once

#include <algorithm>
#include <type_traits>

#include "../step/element_step.h"
#include "clones.h"
#include "storage.h"

namespace grokfused::cpu {

// The arrays of a tile. What is written may be what is read, where both are stored alike.
struct Arrays {
  const void *grad, *param,
      *rest;  // the rest (KahanComp) is added to a parameter of 16 bits: never null there
  const void* states[kMaxStates];
  void* new_param;  // values that are yet to be rounded, for parameters of 16 bits
  void* new_states[kMaxStates];
  uint32_t random_key, first;  // what the random bits of the tile's first element are made of
  const uint32_t* kept;        // for each element all ones or 0; null where all are kept
  MaskMode mask_mode;
  int64_t to_come;  // elements, from the tile's first on, that are stepped one after the other
};

// The filter of an update: none where the loops of a window have amplified the gradient (window.h).
template <class GradFilter>
using AfterWindow = std::conditional_t<std::is_same_v<GradFilter, Mean>, NoFilter, GradFilter>;

// A processor follows so many arrays by itself, but stops at each page: so elements that come soon are
// fetched, a few lines of each array between two strips. What is computed longer has longer ones, as each
// begins anew.
constexpr int kFetchAhead = 256;
template <class Param, class State>
constexpr int kStrip = sizeof(typename Param::Stored) + sizeof(typename State::Stored) >= 8 ? 64 : 128;

// `scalars`: of the real numbers of the parameters.
using Update = void (*)(const Arrays&, int size, const void* scalars, const Choices&);

template <class Format>
GROK_HD auto read(const void* stored, int i) {
  return Format::widen(static_cast<const typename Format::Stored*>(stored)[i]);
}

// A function of its own: of a struct in the body of a simd loop g++ makes an array, which it does not
// vectorise.
template <bool kMasked, class Stored>
GROK_HD void write(const Arrays& arrays, Stored* to, const void* before, Stored stepped, int i) {
  if constexpr (kMasked)
    stepped = masked_stored(Where(arrays.kept[i], arrays.mask_mode), stepped,
                            static_cast<const Stored*>(before)[i]);
  to[i] = stepped;
}

template <class Param, class State, class Rows>
GROK_HD Element<typename Param::Real, Rows> read_element(const Arrays& arrays, int i) {
  Element<typename Param::Real, Rows> element;
  element.param = read<Param>(arrays.param, i);
  if constexpr (sizeof(typename Param::Stored) == 2)
    element.param = element.param + read<Param>(arrays.rest, i);
  element.grad = read<Param>(arrays.grad, i);
  Rows::each([&](auto row, int place) {
    constexpr StateRow kRow = decltype(row)::kRow;
    static_assert(kRow.of == Of::kStates, "others have loops of their own");
    value_of<decltype(row)>(element) = read<State>(arrays.states[place], i);
  });
  return element;
}

template <class State, Rounding kRounding, bool kMasked, class Real, class Rows>
GROK_HD void write_element(const Arrays& arrays, int i, Element<Real, Rows>& element) {
  write<kMasked>(arrays, static_cast<Real*>(arrays.new_param), arrays.param, element.param, i);
  uint32_t drawn = 0;
  if constexpr (kRounding == Rounding::kStochastic)
    drawn = state_draw(random_bits(arrays.random_key, arrays.first + static_cast<uint32_t>(i)));
  Rows::each([&](auto row, int place) {
    write<kMasked>(arrays, static_cast<typename State::Stored*>(arrays.new_states[place]),
                   arrays.states[place], rounded<State>(value_of<decltype(row)>(element), kRounding, drawn),
                   i);
  });
}

template <class Param, class State, Rounding kRounding, class Step, bool kMasked>
GROK_HD void update_element(const Arrays& arrays, int i, const ScalarsOf<typename Param::Real>& scalars,
                            const Choices& choices) {
  auto element = read_element<Param, State, typename Step::States>(arrays, i);
  Step::run(element, scalars, choices);
  write_element<State, kRounding, kMasked>(arrays, i, element);
}

// Two neighbours at once where values of 16 bits are read or written: both lie in one word, out of which a
// shift and a mask bring them. One by one they were spread over vectors and gathered again.
template <class Format>
constexpr bool kInPairs = sizeof(typename Format::Stored) == 2;

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the first one is the lower half");

GROK_HD uint32_t word_at(const void* stored, int pair) {
  uint32_t word;
  std::memcpy(&word, static_cast<const char*>(stored) + sizeof word * pair, sizeof word);
  return word;
}

// What two neighbours have in one array.
template <class Format>
GROK_HD void read_two(const void* stored, int pair, typename Format::Real& first,
                      typename Format::Real& second) {
  if constexpr (kInPairs<Format>) {
    const uint32_t word = word_at(stored, pair);
    first = Format::widen(static_cast<uint16_t>(word));
    second = Format::widen(static_cast<uint16_t>(word >> 16));
  } else {
    first = read<Format>(stored, 2 * pair);
    second = read<Format>(stored, 2 * pair + 1);
  }
}

template <bool kMasked, class Stored>
GROK_HD void write_two(const Arrays& arrays, void* to, const void* before, Stored first, Stored second,
                       int pair) {
  if constexpr (sizeof(Stored) == 2) {
    uint32_t word = first | static_cast<uint32_t>(second) << 16;
    if constexpr (kMasked) {
      const uint32_t kept = (arrays.kept[2 * pair] & 0xffffu) | (arrays.kept[2 * pair + 1] & 0xffff0000u);
      word = masked(Where(kept, arrays.mask_mode), word, word_at(before, pair));
    }
    std::memcpy(static_cast<char*>(to) + sizeof word * pair, &word, sizeof word);
  } else {
    write<kMasked>(arrays, static_cast<Stored*>(to), before, first, 2 * pair);
    write<kMasked>(arrays, static_cast<Stored*>(to), before, second, 2 * pair + 1);
  }
}

template <class Param, class State, Rounding kRounding, class Step, bool kMasked>
GROK_HD void update_pair(const Arrays& arrays, int pair, const ScalarsOf<typename Param::Real>& scalars,
                         const Choices& choices) {
  using Rows = typename Step::States;
  Element<typename Param::Real, Rows> first, second;
  read_two<Param>(arrays.grad, pair, first.grad, second.grad);
  read_two<Param>(arrays.param, pair, first.param, second.param);
  if constexpr (kInPairs<Param>) {
    float rest, other;
    read_two<Param>(arrays.rest, pair, rest, other);
    first.param = first.param + rest;
    second.param = second.param + other;
  }
  Rows::each([&](auto row, int place) {
    using Row = decltype(row);
    read_two<State>(arrays.states[place], pair, value_of<Row>(first), value_of<Row>(second));
  });
  Step::run(first, scalars, choices);
  Step::run(second, scalars, choices);
  write_two<kMasked>(arrays, arrays.new_param, arrays.param, first.param, second.param, pair);
  const uint32_t i = arrays.first + 2 * static_cast<uint32_t>(pair);
  uint32_t drawn = 0, drawn_too = 0;
  if constexpr (kRounding == Rounding::kStochastic) {
    drawn = state_draw(random_bits(arrays.random_key, i));
    drawn_too = state_draw(random_bits(arrays.random_key, i + 1));
  }
  Rows::each([&](auto row, int place) {
    using Row = decltype(row);
    write_two<kMasked>(arrays, arrays.new_states[place], arrays.states[place],
                       rounded<State>(value_of<Row>(first), kRounding, drawn),
                       rounded<State>(value_of<Row>(second), kRounding, drawn_too), pair);
  });
}

template <class Stored>
GROK_HD void fetch(const void* stored, int64_t begin, int size) {
  const auto* first = reinterpret_cast<const char*>(static_cast<const Stored*>(stored) + begin);
  for (size_t line = 0; line < size * sizeof(Stored); line += kCacheLine)
    __builtin_prefetch(first + line, 0, 2);
}

template <class Param, class State, int kStates>
GROK_HD void fetch_ahead(const Arrays& arrays, int begin) {
  constexpr int kSize = kStrip<Param, State>;
  const int64_t next = begin + kFetchAhead;
  if (next >= arrays.to_come) return;
  fetch<typename Param::Stored>(arrays.grad, next, kSize);
  fetch<typename Param::Stored>(arrays.param, next, kSize);
  for (int place = 0; place < kStates; ++place)
    fetch<typename State::Stored>(arrays.states[place], next, kSize);
}

template <class Param, class State, Rounding kRounding, class Step, bool kMasked>
GROK_CPU_CLONES void update(const Arrays& of_tile, int size, const void* scalars, const Choices& of_all) {
  // Copies: the compiler then knows that no store changes them.
  const auto numbers = *static_cast<const ScalarsOf<typename Param::Real>*>(scalars);
  const Arrays arrays = of_tile;
  const Choices choices = of_all;
  constexpr bool kPairs = kInPairs<Param> || kInPairs<State>;
  constexpr int strip = kStrip<Param, State>;
  for (int begin = 0; begin < size; begin += strip) {
    fetch_ahead<Param, State, Step::States::kCount>(arrays, begin);
    const int end = std::min(size, begin + strip);
    if constexpr (kPairs) {
#pragma omp simd
      for (int pair = begin / 2; pair < end / 2; ++pair)
        update_pair<Param, State, kRounding, Step, kMasked>(arrays, pair, numbers, choices);
    } else {
#pragma omp simd
      for (int i = begin; i < end; ++i)
        update_element<Param, State, kRounding, Step, kMasked>(arrays, i, numbers, choices);
    }
  }
  if (kPairs && size % 2)
    update_element<Param, State, kRounding, Step, kMasked>(arrays, size - 1, numbers, choices);
}

// For parameters of one format; `kMasked`: under a mask that keeps some elements of the tile.
template <class Param, class Step, bool kMasked>
Update update_of(Format state, Rounding rounding) {
  if constexpr (Param::kFormat == Format::kFloat64) {
    return update<Param, Float64, Rounding::kNearest, Step, kMasked>;
  } else {
    if (state == Format::kFloat32) return update<Param, Float32, Rounding::kNearest, Step, kMasked>;
    if (rounding == Rounding::kNearest) return update<Param, BFloat16, Rounding::kNearest, Step, kMasked>;
    return update<Param, BFloat16, Rounding::kStochastic, Step, kMasked>;
  }
}

}  // namespace grokfused::cpu
