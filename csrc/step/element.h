// One element between its read and its write: float32 values, no addresses. Which state arrays it has are
// rows: each room lists its own, and whatever reads, writes, masks or clears the arrays of a step walks over
// the list.
#pragma once

#include <string_view>

#include "portable.h"

namespace grokfused {

// What is known of a state array without its room: its name in the optimizer's state; whether it is stored in
// the parameter's dtype, or else in the states'; and how many values it keeps of each element, in planes of
// the parameter's size that lie one after the other.
struct StateRow {
  std::string_view name;
  bool like_param = false;
  int planes = 1;
};

// How many values lie before the plane that step 1, 2, ... reads and writes.
GROK_HD int64_t plane_begin(int planes, float step, int64_t size) {
  return planes == 1 ? 0 : (static_cast<int64_t>(step) - 1) % planes * size;
}

// A row is a struct with a StateRow, `kRow`, and one float: the state's value in an element, under the name
// by which its room knows it; `kField` says which member that is.
template <class... Rows>
struct StateRows {
  static constexpr int kCount = sizeof...(Rows);

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

template <class Rows>
struct Element;

template <class... Rows>
struct Element<StateRows<Rows...>> : Rows... {
  float param = 0;
  float grad = 0;
};

}  // namespace grokfused
