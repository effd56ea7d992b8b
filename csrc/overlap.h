// Whether the tensors of a step share memory. It knows addresses only.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

namespace grokfused {

// The bytes of one tensor, of one of the places that are stepped.
struct Extent {
  uintptr_t begin, end;
  uint32_t place;
  bool written;
};

struct Sharing {
  size_t apart;                  // so many places, from the first on, share nothing that one of them writes
  std::optional<size_t> itself;  // a place of which two tensors share what is written
};

inline Sharing sharing(std::vector<Extent>& extents, size_t places) {
  std::sort(extents.begin(), extents.end(),
            [](const Extent& a, const Extent& b) { return a.begin < b.begin; });
  Sharing found{places, std::nullopt};
  std::vector<Extent> open;  // those that reach beyond the beginning of the next one: mostly one
  for (const Extent& extent : extents) {
    size_t still = 0;
    for (const Extent& other : open) {
      if (other.end <= extent.begin) continue;
      open[still++] = other;
      if (!other.written && !extent.written) continue;
      if (other.place == extent.place) found.itself = extent.place;
      found.apart = std::min(found.apart, size_t{std::max(other.place, extent.place)});
    }
    open.resize(still);
    open.push_back(extent);
  }
  return found;
}

}  // namespace grokfused
