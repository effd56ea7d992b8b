#include "tile.h"

#include <algorithm>

#include "rest.h"

namespace grokfused::cpu {
namespace {

// Minus 0 in either format of 16 bits: the one number that changes no other when it is added.
struct NoRest {
  uint16_t values[kTile];
  NoRest() { std::fill_n(values, kTile, uint16_t{0x8000}); }
};
alignas(kCacheLine) const NoRest kNoRest;

// What leaves a sum that was taken without it, and what a mask makes of elements that it leaves out.
alignas(kCacheLine) const double kNothing[kTile] = {};

// What a tile needs beside its arrays: the parameter before its rounding, and what has 16 bits as stored
// before a mask chooses, or its states.
struct alignas(kCacheLine) Buffers {
  float values[kTile];
  uint16_t param[kTile], rest[kTile];
  float states[kMaxStates][kTile];
  double amplified[kTile];  // gradients, in real numbers
};

// The place of the first state of a kind; -1 where there is none.
int place_of(const std::vector<StateRow>& rows, Of of) {
  const auto found =
      std::find_if(rows.begin(), rows.end(), [&](const StateRow& row) { return row.of == of; });
  return found == rows.end() ? -1 : static_cast<int>(found - rows.begin());
}

}  // namespace

Parts::Parts(std::pair<Update, Update> updates, bool widens, bool has_window, const Choices& choices,
             const std::vector<StateRow>& rows)
    : update(updates.first),
      selecting(updates.second),
      widen(widens ? widening(choices.param) : nullptr),
      narrow(widens ? narrowing(choices.param, choices.param_rounding) : nullptr),
      window(has_window ? window_loops(choices.param, choices.window) : WindowLoops{}),
      choices(choices),
      param_bytes(bytes_of(choices.param)),
      grad_bytes(param_bytes),
      value_bytes(widens ? sizeof(float) : param_bytes),
      rows(rows),
      grad_window(place_of(rows, Of::kWindow)),
      grad_sum(place_of(rows, Of::kReal)),
      rest(place_of(rows, Of::kParam)) {
  const size_t real = choices.param == Format::kFloat64 ? sizeof(double) : sizeof(float);
  if (widens || has_window) grad_bytes = real;
  const size_t bytes[] = {bytes_of(choices.state), bytes_of(choices.window), param_bytes, real, kToAWord};
  for (const StateRow& row : rows) {
    if (row.of == Of::kStates || row.of == Of::kBases)
      updated.push_back(static_cast<int>(state_bytes.size()));
    state_bytes.push_back(bytes[static_cast<size_t>(row.of)]);
  }
}

Arrays Parts::beginning_of(const Slice& slice) const {
  Arrays begin{};
  if (slice.mask || widen || window.amplify) return begin;
  begin.grad = slice.grad;
  begin.param = slice.param;
  if (rest >= 0) begin.rest = slice.states[rest];
  for (size_t k = 0; k < updated.size(); ++k) begin.states[k] = slice.states[updated[k]];
  begin.to_come = slice.size;
  return begin;
}

void SliceStep::run(int64_t begin, int64_t end, int64_t to_come) const {
  const int64_t most = parts_.widen || parts_.window.amplify ? kTile : kPiece, last = begin + to_come;
  for (int64_t stop; begin < end; begin = stop) {
    stop = end_of_tile(begin, end, most);
    run_tile(begin, static_cast<int>(stop - begin), nullptr, last - begin);
  }
}

void SliceStep::run_selected(int64_t begin, int64_t end, int64_t to_come) const {
  const int64_t last = begin + to_come;
  for (int64_t stop; begin < end; begin = stop) {
    stop = end_of_tile(begin, end);
    const int size = static_cast<int>(stop - begin);
    run_tile(begin, size, slice_.mask + begin / kLanes, last - begin);
  }
}

// `kept` and `to_come`: as Arrays have them.
void SliceStep::run_tile(int64_t begin, int size, const uint32_t* kept, int64_t to_come) const {
  Buffers buffers;
  const uint32_t first = slice_.first + static_cast<uint32_t>(begin);
  void* param = this->param().at(begin);
  void* rest = parts_.rest < 0 ? nullptr : state(parts_.rest).at(begin);
  const Update selecting = kept ? parts_.selecting : nullptr;
  const bool choose = kept && (!selecting || parts_.narrow), choose_states = kept && !selecting;
  void *new_param = choose ? buffers.param : param, *new_rest = choose ? buffers.rest : rest;
  Arrays arrays;
  arrays.grad = grad().at(begin);
  arrays.param = param;
  arrays.rest = rest;
  arrays.new_param = new_param;
  arrays.new_rest = new_rest;
  arrays.random_key = key_;
  arrays.first = first;
  arrays.kept = kept;
  arrays.zeros = slice_.mask_mode == MaskMode::kZero ? kNothing : nullptr;
  arrays.to_come = to_come;
  arrays.next = begin + to_come == slice_.size ? &next_ : nullptr;
  for (size_t k = 0; k < parts_.updated.size(); ++k) {
    void* stored = state(parts_.updated[k]).at(begin);
    arrays.states[k] = stored;
    arrays.new_states[k] = choose_states ? buffers.states[k] : stored;
    arrays.others_states[k] = arrays.instead_of(stored);
  }
  const bool has_window = parts_.window.amplify;
  if (has_window)
    amplify(begin, size, kept, arrays, buffers.amplified);
  else if (parts_.widen)
    widen_grad(arrays, buffers.amplified, size);
  if (parts_.widen) {
    parts_.widen(param, rest ? rest : kNoRest.values, buffers.values, size);
    arrays.param = arrays.new_param = buffers.values;
  }
  arrays.others_param = arrays.instead_of(arrays.param);
  step(arrays, size, selecting ? selecting : parts_.update);
  if (parts_.narrow) parts_.narrow(buffers.values, new_param, new_rest, size, key_, first);
  if (!choose) return;
  take(buffers.param, this->param(), begin, size, kept);
  for (size_t k = 0; k < parts_.updated.size() && choose_states; ++k)
    take(buffers.states[k], state(parts_.updated[k]), begin, size, kept);
  if (rest) take(buffers.rest, state(parts_.rest), begin, size, kept);
}

// Whole units where they lie, and what is left as one more. A sparse mask has units of a word.
void SliceStep::step(const Arrays& arrays, int size, Update update) const {
  const void* scalars = parts_.window.amplify ? after_window_ : scalars_;
  const int unit = in_blocks() ? kBlock : kLanes, whole = size / unit * unit;
  update(arrays, whole, scalars, parts_.choices);
  if (whole == size) return;
  const Rest rest(parts_, arrays, whole, size - whole, unit);
  update(rest.whole(), unit, scalars, parts_.choices);
  rest.put_back();
}

void SliceStep::widen_grad(Arrays& arrays, void* values, int size) const {
  parts_.widen(arrays.grad, kNoRest.values, static_cast<float*>(values), size);
  arrays.grad = values;
}

// Writes a tile's window and its sum, and puts the gradients into `arrays` as the update takes them: in real
// numbers. `amplified`: room for them.
void SliceStep::amplify(int64_t begin, int size, const uint32_t* kept, Arrays& arrays,
                        void* amplified) const {
  alignas(kCacheLine) double others[kTile], entering[kTile], sum[kTile];
  const Array grad_window = state(parts_.grad_window), grad_sum = state(parts_.grad_sum);
  void *leaving = grad_window.at(begin), *old_sum = grad_sum.at(begin);
  const bool afresh = window_.has_turn(begin);
  if (afresh) parts_.window.sum_others(leaving, window_, others, size);
  const WindowTile tile{arrays.grad,
                        afresh ? kNothing : leaving,
                        afresh ? others : old_sum,
                        kept ? entering : leaving,
                        kept ? sum : old_sum,
                        amplified};
  parts_.window.amplify(tile, size, scalars_);
  arrays.grad = amplified;
  if (!kept) return;
  take(entering, grad_window, begin, size, kept);
  take(sum, grad_sum, begin, size, kept);
}

}  // namespace grokfused::cpu
