// The arithmetic of a step: one simd loop over ElementStep, which widens what it reads and rounds what it
// writes. That is why formats and roundings are compiled apart: only where reading, arithmetic and writing
// alternate does the processor do them at once. Of what a mask keeps it chooses as it writes beside float32
// parameters, where it is compiled once more; beside those of 16 bits that is not its subject (storage.h).
#pragma once

#include <algorithm>
#include <type_traits>

#include "../step/element_step.h"
#include "clones.h"
#include "storage.h"

namespace grokfused::cpu {

// The arrays of a tile. What is written may be what is read, where both are stored alike.
struct Arrays {
  const void *grad, *param, *rest;  // the rest: KahanComp
  const void* states[kMaxStates];
  void *new_param, *new_rest;
  void* new_states[kMaxStates];
  uint32_t random_key, first;  // what the random bits of the tile's first element are made of
  const uint32_t* kept;        // for each element all ones or 0; null where all are kept
  const void* zeros;           // what the others become; null where they stay what they are
  const void *others_param, *others_states[kMaxStates];  // either of it, so that one operation chooses
  int64_t to_come;     // elements, from the tile's first on, that are stepped one after the other
  const Arrays* next;  // what begins after those: of it, what is read, and its own `to_come`; or null

  GROK_HD const void* instead_of(const void* before) const { return zeros ? zeros : before; }
};

// The filter of an update: none where the loops of a window have amplified the gradient (window.h).
template <class GradFilter>
using AfterWindow = std::conditional_t<std::is_same_v<GradFilter, Mean>, NoFilter, GradFilter>;

// A processor follows so many arrays by itself, but stops at each page: so elements that come soon are
// fetched, a line or two of each array between two strips. Many at once would wait for one another, and the
// arithmetic for them.
constexpr int kFetchAhead = 512;
// Steps `size` elements, whole units (rest.h). `scalars`: of the real numbers of the parameters.
using Update = void (*)(const Arrays&, int size, const void* scalars, const Choices&);

// How parameters and states are stored, and rounded as they are written.
template <class ParamFormat, class StateFormat, Rounding kRoundingOfParam, Rounding kRoundingOfStates>
struct StoredAs {
  using Param = ParamFormat;
  using State = StateFormat;
  static constexpr Rounding kOfParam = kRoundingOfParam, kOfStates = kRoundingOfStates;
  static constexpr bool kKeepsRest = kOfParam == Rounding::kKahan;
  static constexpr bool kDraws = kOfParam == Rounding::kStochastic || kOfStates == Rounding::kStochastic;
  static constexpr size_t kParamBytes = sizeof(typename Param::Stored);
  static constexpr size_t kStateBytes = sizeof(typename State::Stored);
  static constexpr bool kInPairs = kParamBytes == 2 || kStateBytes == 2;
  // Of a strip: a line of the narrowest array. The compiler knows how many they are, and so writes one piece
  // of code without a loop, instead of a loop, its ends and one for what is left.
  static constexpr int kStrip = static_cast<int>(kCacheLine / std::min(kParamBytes, kStateBytes));
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

// A function of its own: of a struct in the body of a simd loop g++ makes an array, which it does not
// vectorise.
template <bool kMasked, class Stored>
GROK_HD void write(const Arrays& arrays, Stored* to, const void* others, Stored stepped, At at) {
  if constexpr (kMasked)
    stepped = masked_stored(where(arrays.kept[at.place()]), stepped,
                            static_cast<const Stored*>(others)[at.place()]);
  to[at.place()] = stepped;
}

// What an element's roundings draw.
struct Draws {
  uint32_t state = 0, param = 0;
};

template <class Stored>
GROK_HD Draws draws_of(const Arrays& arrays, At at) {
  if constexpr (!Stored::kDraws) return {};
  const uint32_t bits = random_bits(arrays.random_key, arrays.first + at.index());
  return {state_draw(bits), param_draw(bits)};
}

template <class Stored, class Step, bool kMasked>
GROK_HD void update_element(const Arrays& arrays, At at,
                            const ScalarsOf<typename Stored::Param::Real>& scalars, const Choices& choices) {
  using Param = typename Stored::Param;
  using State = typename Stored::State;
  using Rows = typename Step::States;
  Element<typename Param::Real, Rows> element;
  element.grad = read<Param>(arrays.grad, at);
  element.param = read<Param>(arrays.param, at);
  if constexpr (Stored::kKeepsRest) element.param = element.param + read<Param>(arrays.rest, at);
  Rows::each([&](auto row, int place) {
    static_assert(decltype(row)::kRow.of == Of::kStates, "others have loops of their own");
    value_of<decltype(row)>(element) = read<State>(arrays.states[place], at);
  });
  Step::run(element, scalars, choices);
  const Draws draws = draws_of<Stored>(arrays, at);
  write<kMasked>(arrays, static_cast<typename Param::Stored*>(arrays.new_param), arrays.others_param,
                 rounded<Param>(element.param, Stored::kOfParam, draws.param), at);
  if constexpr (Stored::kKeepsRest)
    write<false>(arrays, static_cast<typename Param::Stored*>(arrays.new_rest), nullptr,
                 Param::round(cut_off<Param>(element.param)), at);
  Rows::each([&](auto row, int place) {
    write<kMasked>(arrays, static_cast<typename State::Stored*>(arrays.new_states[place]),
                   arrays.others_states[place],
                   rounded<State>(value_of<decltype(row)>(element), Stored::kOfStates, draws.state), at);
  });
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
GROK_HD void write_two(const Arrays& arrays, void* to, const void* others, Stored first, Stored second,
                       At at) {
  if constexpr (sizeof(Stored) == 2) {
    uint32_t word = first | static_cast<uint32_t>(second) << 16;
    if constexpr (kMasked) {
      const uint32_t kept =
          (arrays.kept[at.place()] & 0xffffu) | (arrays.kept[at.next().place()] & 0xffff0000u);
      word = masked(where(kept), word, word_at(others, at));
    }
    std::memcpy(static_cast<char*>(to) + sizeof word / 2 * at.place(), &word, sizeof word);
  } else {
    write<kMasked>(arrays, static_cast<Stored*>(to), others, first, at);
    write<kMasked>(arrays, static_cast<Stored*>(to), others, second, at.next());
  }
}

template <class Stored, class Step, bool kMasked>
GROK_HD void update_pair(const Arrays& arrays, At at, const ScalarsOf<typename Stored::Param::Real>& scalars,
                         const Choices& choices) {
  using Param = typename Stored::Param;
  using State = typename Stored::State;
  using Rows = typename Step::States;
  Element<typename Param::Real, Rows> first, second;
  read_two<Param>(arrays.grad, at, first.grad, second.grad);
  read_two<Param>(arrays.param, at, first.param, second.param);
  if constexpr (Stored::kKeepsRest) {
    float rest, other;
    read_two<Param>(arrays.rest, at, rest, other);
    first.param = first.param + rest;
    second.param = second.param + other;
  }
  Rows::each([&](auto row, int place) {
    using Row = decltype(row);
    read_two<State>(arrays.states[place], at, value_of<Row>(first), value_of<Row>(second));
  });
  Step::run(first, scalars, choices);
  Step::run(second, scalars, choices);
  const Draws draws = draws_of<Stored>(arrays, at), others = draws_of<Stored>(arrays, at.next());
  write_two<kMasked>(arrays, arrays.new_param, arrays.others_param,
                     rounded<Param>(first.param, Stored::kOfParam, draws.param),
                     rounded<Param>(second.param, Stored::kOfParam, others.param), at);
  if constexpr (Stored::kKeepsRest)
    write_two<false>(arrays, arrays.new_rest, nullptr, Param::round(cut_off<Param>(first.param)),
                     Param::round(cut_off<Param>(second.param)), at);
  Rows::each([&](auto row, int place) {
    using Row = decltype(row);
    write_two<kMasked>(arrays, arrays.new_states[place], arrays.others_states[place],
                       rounded<State>(value_of<Row>(first), Stored::kOfStates, draws.state),
                       rounded<State>(value_of<Row>(second), Stored::kOfStates, others.state), at);
  });
}

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

template <class Stored, class Step, bool kMasked>
GROK_HD void update_strips(const Arrays& arrays, int size,
                           const ScalarsOf<typename Stored::Param::Real>& scalars, const Choices& choices) {
  for (int64_t begin = 0; begin < size; begin += Stored::kStrip) {
    fetch_ahead<Stored, Step::States::kCount>(arrays, begin);
    if constexpr (Stored::kInPairs) {
#pragma omp simd
      for (int i = 0; i < Stored::kStrip / 2; ++i)
        update_pair<Stored, Step, kMasked>(arrays, {begin, 2 * i}, scalars, choices);
    } else {
#pragma omp simd
      for (int i = 0; i < Stored::kStrip; ++i)
        update_element<Stored, Step, kMasked>(arrays, {begin, i}, scalars, choices);
    }
  }
}

template <class Stored, class Step, bool kMasked>
GROK_CPU_CLONES void update(const Arrays& of_tile, int size, const void* scalars, const Choices& of_all) {
  static_assert(!(kMasked && Stored::kKeepsRest), "a rest is chosen by a loop of its own (tile.h)");
  static_assert(kLanes % Stored::kStrip == 0, "units are whole strips");
  // Copies: the compiler then knows that no store changes them.
  const auto numbers = *static_cast<const ScalarsOf<typename Stored::Param::Real>*>(scalars);
  const Arrays arrays = of_tile;
  Choices choices = of_all;
  if (!Stored::kInPairs || choices.decay != Decay::kDecoupled)
    return update_strips<Stored, Step, kMasked>(arrays, size, numbers, choices);
  // Where values are widened and rounded, the instructions of the other decay are a twentieth of the time.
  choices.decay = Decay::kDecoupled;
  update_strips<Stored, Step, kMasked>(arrays, size, numbers, choices);
}

// Calls use(constant) for the one of the roundings that is chosen.
template <Rounding... kRoundings, class Use>
void with_rounding(Rounding rounding, Use&& use) {
  const auto use_if_chosen = [&](auto constant) {
    if (constant == rounding) use(constant);
  };
  (use_if_chosen(std::integral_constant<Rounding, kRoundings>{}), ...);
}

template <class Format, class Use>
void with_state_rounding(Rounding rounding, Use&& use) {
  if constexpr (sizeof(typename Format::Stored) == 2)
    with_rounding<Rounding::kNearest, Rounding::kStochastic>(rounding, use);
  else
    with_rounding<Rounding::kNearest>(rounding, use);
}

template <class Format, class Use>
void with_param_rounding(Rounding rounding, Use&& use) {
  if constexpr (sizeof(typename Format::Stored) == 2)
    with_rounding<Rounding::kNearest, Rounding::kStochastic, Rounding::kKahan>(rounding, use);
  else
    with_rounding<Rounding::kNearest>(rounding, use);
}

// For parameters of one format; `kMasked`: under a mask that keeps some elements of the tile.
template <class Param, class Step, bool kMasked>
Update update_of(Format state_format, Rounding of_param, Rounding of_states) {
  Update found = nullptr;
  with_state_format<Param>(state_format, [&](auto state) {
    using State = decltype(state);
    with_param_rounding<Param>(of_param, [&](auto param_rounding) {
      with_state_rounding<State>(of_states, [&](auto rounding) {
        found = update<StoredAs<Param, State, param_rounding.value, rounding.value>, Step, kMasked>;
      });
    });
  });
  return found;
}

}  // namespace grokfused::cpu
