// The last elements of a slice, as one whole unit: so a loop of update.h knows how long it is, and needs no
// other ends. What is beyond them is 0.
#pragma once

#include "tile.h"

namespace grokfused::cpu {

class Rest {
 public:
  // Of `size` elements of a tile from `begin` on, where a unit begins, and fewer than that. `unit`: its
  // elements, kUnit at most.
  Rest(const Parts& parts, const Arrays& tile, int begin, int size, int unit);
  Rest(const Rest&) = delete;
  Rest& operator=(const Rest&) = delete;

  const Arrays& whole() const { return whole_; }
  // Writes what was stepped where the tile would have.
  void put_back() const;

 private:
  struct alignas(kCacheLine) Values {
    char bytes[kUnit * sizeof(double)];
  };

  bool is_of_blocks(size_t k) const { return parts_.rows[parts_.updated[k]].of == Of::kBases; }
  size_t state_bytes(size_t k) const { return parts_.state_bytes[parts_.updated[k]]; }

  const Parts& parts_;
  const Arrays tile_;
  const int begin_, size_;
  Arrays whole_;
  Values grad_, param_, rest_, states_[kMaxStates];  // of those that there are
  uint32_t kept_[kUnit / kLanes];
};

}  // namespace grokfused::cpu
