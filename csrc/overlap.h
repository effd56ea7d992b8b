// Whether the tensors of a step share memory. It knows addresses only.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace grokfused {

// The bytes of one tensor, of one of the places that are stepped.
struct Extent {
  uintptr_t begin, end;
  uint32_t place;
  bool written;
};

struct Sharing {
  // Places from each of which on none shares what is written with one since the last of these: the parts of a
  // step that are taken one after the other. Empty where nothing is shared.
  std::vector<size_t> begins;
  std::optional<size_t> itself;  // a place of which two tensors share what is written
};

// By where they begin. Of thousands a digit after the other, the lowest first, as no processor foresees what
// a comparison of them says: it takes a third of the time.
inline void sort_extents(std::vector<Extent>& extents) {
  constexpr int kDigit = 11;  // bits
  constexpr size_t kMany = 1024, kValues = size_t{1} << kDigit;
  if (extents.size() < kMany) {
    std::sort(extents.begin(), extents.end(),
              [](const Extent& a, const Extent& b) { return a.begin < b.begin; });
    return;
  }
  uintptr_t differing = 0;
  for (const Extent& extent : extents) differing |= extent.begin ^ extents[0].begin;
  std::vector<Extent> sorted(extents.size());
  for (int digit = 0; digit < 64 && differing >> digit; digit += kDigit) {
    const auto value = [digit](const Extent& extent) { return extent.begin >> digit & (kValues - 1); };
    std::array<uint32_t, kValues> place{};
    for (const Extent& extent : extents) ++place[value(extent)];
    uint32_t before = 0;
    for (uint32_t& of_value : place) before += std::exchange(of_value, before);
    for (const Extent& extent : extents) sorted[place[value(extent)]++] = extent;
    extents.swap(sorted);
  }
}

inline Sharing sharing(std::vector<Extent>& extents, size_t places) {
  sort_extents(extents);
  Sharing found;
  std::vector<size_t> after;  // place -> 1 + the last one before it that it shares with, or 0; empty: all 0
  std::vector<Extent> open;   // those that reach beyond the beginning of the next one: mostly none
  uintptr_t reached = 0;      // the end of them all
  for (const Extent& extent : extents) {
    if (reached <= extent.begin) open.clear();
    reached = std::max(reached, extent.end);
    size_t still = 0;
    for (const Extent& other : open) {
      if (other.end <= extent.begin) continue;
      open[still++] = other;
      if (!other.written && !extent.written) continue;
      if (other.place == extent.place) found.itself = extent.place;
      const auto [first, last] = std::minmax(other.place, extent.place);
      after.resize(places);
      if (first != last) after[last] = std::max(after[last], size_t{first} + 1);
    }
    open.resize(still);
    open.push_back(extent);
  }
  for (size_t t = 0, begin = 0; t < after.size(); ++t)
    if (after[t] > begin) found.begins.push_back(begin = t);
  return found;
}

}  // namespace grokfused
