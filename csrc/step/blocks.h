// Values that a block of neighbours shares. All elements of a block are stepped, and what a mask leaves out
// is chosen, before the first is written: then the largest of what they measure is known. It must not know
// what is measured, nor how a backend goes through a block.
#pragma once

#include "element.h"
#include "storage.h"

namespace grokfused {

// Calls use(row, place) for every row of a shared value.
template <class Rows, class Use>
GROK_HD void each_shared([[maybe_unused]] Use&& use) {
  Rows::each([&]([[maybe_unused]] auto row, [[maybe_unused]] int place) {
    if constexpr (is_shared(decltype(row)::kRow)) use(row, place);
  });
}

template <class Real, class Rows>
GROK_HD void decode(Element<Real, Rows>& element) {
  each_shared<Rows>([&](auto row, int) { row.decode(element); });
}

// `largest`: of what is measured, by place. NaN is left out, and what is below 0.
template <class Real, class Rows>
GROK_HD void measure(const Element<Real, Rows>& element, Real* largest) {
  each_shared<Rows>([&](auto row, int place) {
    const Real measured = row.measure(element);
    largest[place] = measured > largest[place] ? measured : largest[place];
  });
}

template <class Real, class Rows>
GROK_HD void encode(Element<Real, Rows>& element, const Real* largest) {
  each_shared<Rows>([&](auto row, int place) {
    value_of<decltype(row)>(element) = largest[place];
    row.encode(element);
  });
}

// An element of values that blocks share, as the mask leaves it: chosen before they are stored, since what is
// stored changes with what is shared.
template <class Real, class Rows>
GROK_HD void leave_out(Element<Real, Rows>& element, const Element<Real, Rows>& before, Where where) {
  element.param = masked_stored(where, element.param, before.param);
  Rows::each([&](auto row, int) {
    auto& value = value_of<decltype(row)>(element);
    value = masked_stored(where, value, value_of<decltype(row)>(before));
  });
}

}  // namespace grokfused
