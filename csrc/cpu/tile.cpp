#include "tile.h"

#include <algorithm>

namespace grokfused::cpu {
namespace {

constexpr size_t kCacheLine = 64;

// Minus 0 in either format of 16 bits: the one number that changes no other when it is added.
struct NoRest {
  uint16_t values[kTile];
  NoRest() { std::fill_n(values, kTile, uint16_t{0x8000}); }
};
alignas(kCacheLine) const NoRest kNoRest;

// What a tile needs beside its arrays: the parameter before its rounding, and all as stored before a mask
// chooses.
struct alignas(kCacheLine) Buffers {
  float values[kTile];
  uint16_t param[kTile], rest[kTile];
  float states[kMaxStates][kTile];
};

}  // namespace

Parts::Parts(Update update, Update selecting, const Choices& choices, const std::vector<StateRow>& rows)
    : update(update),
      selecting(selecting),
      narrow(narrowing(choices.param, choices.param_rounding)),
      decay(choices.decay),
      keeps_rest(choices.keeps_rest()),
      in_place(!is_16_bits(choices.param)),
      param_bytes(bytes_of(choices.param)),
      rows(rows),
      shares(std::any_of(rows.begin(), rows.end(), is_shared)) {
  const size_t real = choices.param == Format::kFloat64 ? sizeof(double) : sizeof(float);
  for (const StateRow& row : rows)
    state_bytes.push_back(is_shared(row) ? real : row.like_param ? param_bytes : bytes_of(choices.state));
}

void SliceStep::run(int64_t begin, int64_t end) const {
  const int64_t most = parts_.in_place ? kPiece : kTile;
  for (; begin < end; begin += most) run_tile(begin, static_cast<int>(std::min(most, end - begin)), nullptr);
}

void SliceStep::run_selected(int64_t begin, int64_t end) const {
  uint32_t kept[kTile];
  const int size = static_cast<int>(end - begin);
  spread(slice_.mask + begin / kLanes, static_cast<int>(mask_words(size)), kept);
  run_tile(begin, size, kept);
}

// `kept` is null where all are, or else all ones or 0 for each element.
void SliceStep::run_tile(int64_t begin, int size, const uint32_t* kept) const {
  Buffers buffers;
  const int updated = parts_.keeps_rest ? states() - 1 : states();  // the rest is the last state
  const uint32_t first = slice_.first + static_cast<uint32_t>(begin);
  void* param = this->param().at(begin);
  void* rest = parts_.keeps_rest ? state(updated).at(begin) : nullptr;
  Arrays arrays{grad().at(begin), param, rest ? rest : kNoRest.values, {}, nullptr, {}, key_, first, kept,
                slice_.mask_mode};
  const Update selecting = kept ? parts_.selecting : nullptr;
  const bool choose = kept && (!selecting || parts_.narrow), choose_states = kept && !selecting;
  arrays.new_param = choose || parts_.narrow ? buffers.values : param;
  for (int place = 0; place < updated; ++place) {
    arrays.states[place] = state(place).at(begin);
    arrays.new_states[place] = choose_states ? buffers.states[place] : state(place).at(begin);
  }
  (selecting ? selecting : parts_.update)(arrays, size, scalars_, parts_.decay);
  if (parts_.narrow)
    parts_.narrow(buffers.values, choose ? buffers.param : param, choose ? buffers.rest : rest, size, key_,
                  first);
  if (!choose) return;
  const auto take = [&](const void* stepped, const Array& array) {
    select(array.bytes, stepped, kept, slice_.mask_mode, array.at(begin), size);
  };
  take(parts_.narrow ? static_cast<void*>(buffers.param) : buffers.values, this->param());
  for (int place = 0; place < updated && choose_states; ++place) take(buffers.states[place], state(place));
  if (parts_.keeps_rest) take(buffers.rest, state(updated));
}

}  // namespace grokfused::cpu
