// The arithmetic of a step: one simd loop over ElementStep, which widens what it reads and rounds what it
// writes. That is why formats and roundings are compiled apart: only where reading, arithmetic and writing
// alternate does the processor do them at once. Of what a mask keeps it chooses as it writes beside float32
// parameters, where it is compiled once more; beside those of 16 bits that is not its subject (storage.h).
#pragma once

#include <type_traits>

#include "../step/element_step.h"
#include "arrays.h"
#include "clones.h"

namespace grokfused::cpu {

// The filter of an update: none where the loops of a window have amplified the gradient (window.h).
template <class GradFilter>
using AfterWindow = std::conditional_t<std::is_same_v<GradFilter, Mean>, NoFilter, GradFilter>;

// Steps `size` elements, whole units (rest.h). `scalars`: of the real numbers of the parameters (tile.h).
using Update = void (*)(const Arrays&, int size, const void* scalars, const Choices&);

// Of numbers that nothing is cut off. `lanes`: what a mask keeps of the strip.
template <class Stored, class Step, bool kMasked>
GROK_HD void update_element(const Arrays& arrays, uint32_t lanes, At at,
                            const ScalarsOf<typename Stored::Param::Real>& scalars, const Choices& choices) {
  using Param = typename Stored::Param;
  using State = typename Stored::State;
  using Rows = typename Step::States;
  Element<typename Param::Real, Rows> element;
  element.grad = read<Param>(arrays.grad, at);
  element.param = read<Param>(arrays.param, at);
  Rows::each([&](auto row, int place) {
    static_assert(decltype(row)::kRow.of == Of::kStates, "others have loops of their own");
    value_of<decltype(row)>(element) = read<State>(arrays.states[place], at);
  });
  Step::run(element, scalars, choices);
  write<kMasked>(lanes, static_cast<typename Param::Stored*>(arrays.new_param), arrays.others_param,
                 Param::round(element.param), at);
  Rows::each([&](auto row, int place) {
    write<kMasked>(lanes, static_cast<typename State::Stored*>(arrays.new_states[place]),
                   arrays.others_states[place], State::round(value_of<decltype(row)>(element)), at);
  });
}

template <class Stored, class Step, bool kMasked>
GROK_HD void update_pair(const Arrays& arrays, uint32_t lanes, At at,
                         const ScalarsOf<typename Stored::Param::Real>& scalars, const Choices& choices) {
  using Param = typename Stored::Param;
  using State = typename Stored::State;
  using Rows = typename Step::States;
  Element<typename Param::Real, Rows> first, second;
  read_two<Param>(arrays.grad, at, first.grad, second.grad);
  read_two<Param>(arrays.param, at, first.param, second.param);
  first.grad = Stored::shortened(first.grad);
  second.grad = Stored::shortened(second.grad);
  if (choices.decay == Decay::kCoupled) {
    first.param = Stored::shortened(first.param);
    second.param = Stored::shortened(second.param);
  }
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
  Draws draws, others;
  draw_two<Stored>(arrays, at, draws, others);
  write_two<kMasked>(lanes, arrays.new_param, arrays.others_param,
                     rounded<Param>(first.param, Stored::kOfParam, draws.param),
                     rounded<Param>(second.param, Stored::kOfParam, others.param), at);
  if constexpr (Stored::kKeepsRest)
    write_two<false>(lanes, arrays.new_rest, nullptr, Param::round(cut_off<Param>(first.param)),
                     Param::round(cut_off<Param>(second.param)), at);
  Rows::each([&](auto row, int place) {
    using Row = decltype(row);
    write_two<kMasked>(lanes, arrays.new_states[place], arrays.others_states[place],
                       rounded<State>(value_of<Row>(first), Stored::kOfStates, draws.state),
                       rounded<State>(value_of<Row>(second), Stored::kOfStates, others.state), at);
  });
}

template <class Stored, class Step, bool kMasked>
GROK_HD void update_strips(const Arrays& arrays, int size,
                           const ScalarsOf<typename Stored::Param::Real>& scalars, const Choices& choices) {
  for (int64_t begin = 0; begin < size; begin += Stored::kStrip) {
    fetch_ahead<Stored, Step::States::kCount>(arrays, begin);
    const uint32_t lanes = kept_in<kMasked>(arrays, begin);
    if constexpr (Stored::kInPairs) {
#pragma omp simd
      for (int i = 0; i < Stored::kStrip / 2; ++i)
        update_pair<Stored, Step, kMasked>(arrays, lanes, {begin, 2 * i}, scalars, choices);
    } else {
#pragma omp simd
      for (int i = 0; i < Stored::kStrip; ++i)
        update_element<Stored, Step, kMasked>(arrays, lanes, {begin, i}, scalars, choices);
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
