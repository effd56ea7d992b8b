// The arithmetic of a step: one simd loop over ElementStep, which widens what it reads and rounds the states.
// That is why their formats are compiled apart: only where reading, arithmetic and writing alternate does the
// processor do them at once. How a parameter of 16 bits is rounded is not its subject (storage.h), nor what a
// mask keeps of one: beside float32 parameters the loop is compiled once more, and chooses as it writes.
#pragma once

#include <algorithm>
#include <type_traits>

#include "../step/element_step.h"
#include "clones.h"

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
};

// The filter of an update: none where the loops of a window have amplified the gradient (window.h).
template <class GradFilter>
using AfterWindow = std::conditional_t<std::is_same_v<GradFilter, Mean>, NoFilter, GradFilter>;

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

template <class Param, class State, Rounding kRounding, class Step, bool kMasked>
GROK_CPU_CLONES void update(const Arrays& of_tile, int size, const void* scalars, const Choices& of_all) {
  // Copies: the compiler then knows that no store changes them.
  const auto numbers = *static_cast<const ScalarsOf<typename Param::Real>*>(scalars);
  const Arrays arrays = of_tile;
  const Choices choices = of_all;
#pragma omp simd
  for (int i = 0; i < size; ++i)
    update_element<Param, State, kRounding, Step, kMasked>(arrays, i, numbers, choices);
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
