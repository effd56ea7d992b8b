// One element between its read and its write: values, no addresses. Which state arrays it has are
// rows: each room lists its own, and whatever reads, writes, masks or clears the arrays of a step walks over
// the list.
#pragma once

#include <string_view>

#include "portable.h"

namespace grokfused {

// Whose dtype an array has: that of the states, of the window of gradients, of the parameter, or the real
// numbers in which a step is computed; or it holds the bases of states of 8 bits.
enum class Of : uint8_t { kStates, kWindow, kParam, kReal, kBases };

// How a state is stored in 8 bits: which byte of a block's bases is its own, and whether it has a sign
// (block8.h).
struct In8Bits {
  int byte;
  bool is_signed;
};
constexpr In8Bits kOfFilters{2, true};

// What is known of a state array without its room: its name in the optimizer's state; how many values it
// keeps of each element, one, or a window's, in planes of the parameter's size that lie one after the other;
// or one for each block of neighbours; and whose dtype it has.
struct StateRow {
  std::string_view name;
  int planes = 1;
  Of of = Of::kStates;
  In8Bits in_8_bits = kOfFilters;
};

// In place of a number of planes.
constexpr int kOnePerBlock = 0, kWindow = -1;
GROK_HD constexpr bool is_ring(const StateRow& row) { return row.planes == kWindow; }

// A row is a struct with a StateRow, `kRow`, and a struct template, `Value`, of one number: the state's value
// in an element, under the name by which its room knows it; `kField` says which member that is.
template <class... Rows>
struct StateRows {
  static constexpr int kCount = sizeof...(Rows);
  static constexpr bool kHasRing = (is_ring(Rows::kRow) || ...);

  // Calls use(row, place) for every row; its array is states[place] of a Slice.
  template <class Use>
  static GROK_HD void each([[maybe_unused]] Use&& use) {
    [[maybe_unused]] int place = 0;
    (use(Rows{}, place++), ...);
  }
};

template <class... Rows, class... More>
constexpr StateRows<Rows..., More...> operator+(StateRows<Rows...>, StateRows<More...>) {
  return {};
}

template <class Real, class Rows>
struct Element;

template <class Number, class... Rows>
struct Element<Number, StateRows<Rows...>> : Rows::template Value<Number>... {
  using Real = Number;
  Real param = 0;
  Real grad = 0;
};

// The value of one row in an element.
template <class Row, class Element>
GROK_HD auto& value_of(Element& element) {
  return element.*Row::template Value<typename Element::Real>::kField;
}

}  // namespace grokfused
