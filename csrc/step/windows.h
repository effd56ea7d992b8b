// The sum of the last gradients of an element, in the time of one. The truth is
// grokfused/backends/windows.py, which says why: a running sum, which the elements take turns at having taken
// afresh from the gradients. It must not know what the sum is for.
#pragma once

#include <cstdint>

#include "portable.h"

namespace grokfused {

constexpr int64_t kTurn = 1024;  // neighbours that have their turn in the same step

// A ring of planes, as one step sees it.
struct Window {
  int32_t size;    // planes; 0: there is no ring
  int32_t place;   // of the plane that leaves, and is written
  int64_t plane;   // values of one
  uint32_t turns;  // turns before the first element that is counted

  // In 32 bits: a GPU takes long for more.
  GROK_HD bool has_turn(int64_t i) const {
    return (turns + static_cast<uint32_t>(i / kTurn)) % static_cast<uint32_t>(size) ==
           static_cast<uint32_t>(place);
  }

  // How many values behind the plane that leaves another one lies: the oldest of the others for k = 1, the
  // youngest for k = size - 1.
  GROK_HD int64_t behind(int32_t k) const { return (place + k < size ? k : k - size) * plane; }
};

// The two operations on a sum: all others of a step are its filter's.
template <class Real>
GROK_HD Real taken_off(Real sum, Real leaving) {
  return sum - leaving;
}
template <class Real>
GROK_HD Real added(Real sum, Real gradient) {
  return sum + gradient;
}

// Of step 1, 2, ...; elements are counted from `first` on, which begins a turn.
GROK_HD Window window_of(int32_t size, float step, int64_t plane, int64_t first = 0) {
  const int32_t place = size ? (static_cast<int32_t>(step) - 1) % size : 0;
  return {size, place, plane, static_cast<uint32_t>(first / kTurn)};
}

}  // namespace grokfused
