// A step of neighbouring elements. One loop reads the arrays, does the arithmetic and writes them, where they
// lie. Where it cannot, the unit is a tile, which stays in the first-level cache: a window, float16, and
// parameters of 16 bits beside states of 8 are widened and rounded by loops of their own, and what a mask
// keeps beside 16 bits is chosen by one more for each array. So they add loops, and do not multiply them.
//
// A block of states of 8 bits (step/block8.h) is stepped at once: it is never cut, neither by tiles nor by
// threads (adamw_cpu.cpp) nor by a mask (masked.h).
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "../step/block8.h"
#include "storage.h"
#include "update.h"
#include "window.h"

namespace grokfused::cpu {

// Elements of a tile, and of what is stepped at once where nothing needs one: 32 bits then suffice for an
// index.
constexpr int kTile = 512, kPiece = 1 << 20;
// Elements that are stepped by one thread and in one tile, counted from the beginning of a slice.
constexpr int kUnit = kBlock;
static_assert(kTile % kUnit == 0 && kPiece % kUnit == 0 && kUnit % kLanes == 0);
constexpr int64_t unit_of(int64_t i) { return i / kUnit * kUnit; }

// Where the tile, or the piece, ends in which an element lies: they begin at multiples of their size, so that
// the elements of a tile have their turn together (step/windows.h).
static_assert(kTurn % kTile == 0);
constexpr int64_t end_of_tile(int64_t i, int64_t end, int64_t size = kTile) {
  return std::min(end, (i / size + 1) * size);
}

// What steps the elements of any slice, and how its arrays are stored.
struct Parts {
  Update update;
  Update selecting;    // under a mask; null where loops of their own choose: beside parameters of 16 bits
  Widen widen;         // of 16 bits, for an update that takes real numbers only; else null
  Narrow narrow;       // of the parameters that it returns; null where it rounds them itself
  WindowLoops window;  // null without one
  Choices choices;
  size_t param_bytes, grad_bytes, value_bytes;  // the last two: of what the update takes
  std::vector<StateRow> rows;
  std::vector<size_t> state_bytes;
  std::vector<int> updated;         // places of the states that the update reads and writes
  int grad_window, grad_sum, rest;  // places; -1 where there is none

  // `updates`: the loop, and the one that chooses; `widens`: they take real numbers only; `has_window`: they
  // come after the loops of a window.
  Parts(std::pair<Update, Update> updates, bool widens, bool has_window, const Choices& choices,
        const std::vector<StateRow>& rows);

  // What the update will read of a slice; nothing of one with a mask, or where loops of their own read it.
  Arrays beginning_of(const Slice& slice) const;
};

// One array of a slice.
struct Array {
  char* stored;
  size_t bytes;            // of a value
  bool of_blocks = false;  // one for each
  void* at(int64_t i) const { return stored + (of_blocks ? i / kBlock : i) * bytes; }
};

// A NaN among them becomes the plain one, as BFloat16OfShortNans wants it: a loss scale, or the lr of a
// tensor, may be one of any bits.
template <class Real>
ScalarsOf<Real> with_plain_nans(const ScalarsOf<Real>& scalars) {
  Real numbers[kScalarCount];
  std::memcpy(numbers, &scalars, sizeof numbers);
  for (Real& number : numbers) number = number != number ? std::numeric_limits<Real>::quiet_NaN() : number;
  ScalarsOf<Real> found;
  std::memcpy(&found, numbers, sizeof found);
  return found;
}

// The scalars of a slice, and what is left of them after the loops of a window.
template <class Real>
struct SliceScalars {
  ScalarsOf<Real> all, after_window;
  explicit SliceScalars(const ScalarsOf<Real>& scalars) : all(with_plain_nans(scalars)), after_window(all) {
    after_window.grad_factor = 1;
  }
};

// The step of one slice. It keeps references. `next`: the slice that is stepped after it, or null.
class SliceStep {
 public:
  template <class Real>
  SliceStep(const Parts& parts, const Slice& slice, const Slice* next, const SliceScalars<Real>& scalars,
            uint32_t seed)
      : parts_(parts),
        slice_(slice),
        next_(next ? parts.beginning_of(*next) : Arrays{}),
        scalars_(&scalars.all),
        after_window_(&scalars.after_window),
        window_(window_of(parts.choices.window_size, static_cast<float>(scalars.all.step), slice.size)),
        key_(random_key(seed, static_cast<uint32_t>(scalars.all.step))) {}

  // Of all elements from `begin`, where a word of the mask begins, up to `end`. `to_come`: as Arrays have it.
  void run(int64_t begin, int64_t end, int64_t to_come) const;
  // Of those that the mask keeps.
  void run_selected(int64_t begin, int64_t end, int64_t to_come) const;

  const Slice& slice() const { return slice_; }
  bool in_blocks() const { return parts_.choices.in_8_bits(); }
  int states() const { return static_cast<int>(parts_.state_bytes.size()); }
  Array state(int place) const {
    const size_t bytes = parts_.state_bytes[place];
    const int64_t begin = is_ring(parts_.rows[place]) ? window_.place * window_.plane : 0;
    return {static_cast<char*>(slice_.states[place]) + begin * bytes, bytes, is_of_blocks(place)};
  }
  Array param() const { return {static_cast<char*>(slice_.param), parts_.param_bytes}; }
  Array grad() const { return {static_cast<char*>(const_cast<void*>(slice_.grad)), parts_.param_bytes}; }
  // Calls use(array) for every array of which each element is written.
  template <class Use>
  void each_written(Use&& use) const {
    use(param());
    for (int place = 0; place < states(); ++place)
      if (!is_of_blocks(place)) use(state(place));
  }

 private:
  bool is_of_blocks(int place) const { return parts_.rows[place].of == Of::kBases; }
  void run_tile(int64_t begin, int size, const uint32_t* kept, int64_t to_come) const;
  void step(const Arrays& arrays, int size, Update update) const;
  void widen_grad(Arrays& arrays, void* values, int size) const;
  void amplify(int64_t begin, int size, const uint32_t* kept, Arrays& arrays, void* amplified) const;
  void take(const void* stepped, const Array& array, int64_t begin, int size, const uint32_t* kept) const {
    select(array.bytes, stepped, kept, slice_.mask_mode, array.at(begin), size);
  }

  const Parts& parts_;
  const Slice& slice_;
  const Arrays next_;
  const void *scalars_, *after_window_;
  Window window_;
  uint32_t key_;
};

}  // namespace grokfused::cpu
