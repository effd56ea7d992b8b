// A step of neighbouring elements. Its unit is a tile, which stays in the first-level cache: one loop reads
// the arrays and does the arithmetic, parameters are rounded by a loop of their own, and what a mask keeps is
// chosen by one more for each array. So roundings and masks add loops, and do not multiply them. Arrays of
// which a mask leaves nothing out are read and written where they lie.
//
// Elements of a block that share a value are stepped together: it is never cut, neither by tiles nor by
// threads (adamw_cpu.cpp) nor by a mask (masked.h).
#pragma once

#include <vector>

#include "storage.h"
#include "update.h"

namespace grokfused::cpu {

// Elements of a tile, and of what is stepped at once where nothing needs one: 32 bits then suffice for an
// index.
constexpr int kTile = 512, kPiece = 1 << 20;
// Elements that are stepped by one thread and in one tile, counted from the beginning of a slice.
constexpr int kUnit = kBlock;
static_assert(kTile % kUnit == 0 && kPiece % kUnit == 0 && kUnit % kLanes == 0);
constexpr int64_t unit_of(int64_t i) { return i / kUnit * kUnit; }

// What steps the elements of any slice, and how its arrays are stored.
struct Parts {
  Update update;
  Update selecting;  // under a mask; null where loops of their own choose: beside parameters of 16 bits
  Narrow narrow;     // of parameters; null for those of more bits
  Decay decay;
  bool keeps_rest, in_place;
  size_t param_bytes;
  std::vector<StateRow> rows;
  std::vector<size_t> state_bytes;
  bool shares;  // blocks share values: a mask leaves out whole ones, or chooses in them

  Parts(Update update, Update selecting, const Choices& choices, const std::vector<StateRow>& rows);
};

// One array of a slice.
struct Array {
  char* stored;
  size_t bytes;            // of a value
  bool is_shared = false;  // by the elements of a block
  void* at(int64_t i) const { return stored + (is_shared ? i / kBlock : i) * bytes; }
};

// The step of one slice. It keeps references.
class SliceStep {
 public:
  template <class Real>
  SliceStep(const Parts& parts, const Slice& slice, const ScalarsOf<Real>& scalars, uint32_t seed)
      : parts_(parts),
        slice_(slice),
        scalars_(&scalars),
        step_(static_cast<float>(scalars.step)),
        key_(random_key(seed, static_cast<uint32_t>(scalars.step))) {}

  // Of all elements from `begin`, where a word of the mask begins, up to `end`.
  void run(int64_t begin, int64_t end) const;
  // Of those that the mask keeps; at most a tile.
  void run_selected(int64_t begin, int64_t end) const;

  const Slice& slice() const { return slice_; }
  bool shares() const { return parts_.shares; }
  int states() const { return static_cast<int>(parts_.state_bytes.size()); }
  Array state(int place) const {
    const size_t bytes = parts_.state_bytes[place];
    return {static_cast<char*>(slice_.states[place]) + plane(place) * bytes, bytes,
            is_shared(parts_.rows[place])};
  }
  Array param() const { return {static_cast<char*>(slice_.param), parts_.param_bytes}; }
  Array grad() const { return {static_cast<char*>(const_cast<void*>(slice_.grad)), parts_.param_bytes}; }
  // Calls use(array) for every array of which each element is written.
  template <class Use>
  void each_written(Use&& use) const {
    use(param());
    for (int place = 0; place < states(); ++place)
      if (!is_shared(parts_.rows[place])) use(state(place));
  }

 private:
  void run_tile(int64_t begin, int size, const uint32_t* kept) const;
  int64_t plane(int place) const { return plane_begin(parts_.rows[place].planes, step_, slice_.size); }

  const Parts& parts_;
  const Slice& slice_;
  const void* scalars_;
  float step_;
  uint32_t key_;
};

}  // namespace grokfused::cpu
