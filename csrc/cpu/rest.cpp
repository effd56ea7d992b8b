#include "rest.h"

#include <algorithm>
#include <cstring>

namespace grokfused::cpu {
namespace {

// Of bytes a whole block has another order (step/block8.h).
constexpr size_t kCode = 1;

void fill(char* to, const void* stored, size_t bytes, int begin, int size, int unit) {
  const char* from = static_cast<const char*>(stored) + begin * bytes;
  std::memset(to, 0, unit * bytes);
  if (bytes == kCode)
    for (int i = 0; i < size; ++i) to[byte_of(i)] = from[i];
  else
    std::memcpy(to, from, size * bytes);
}

void put(const char* from, void* stored, size_t bytes, int begin, int size) {
  char* to = static_cast<char*>(stored) + begin * bytes;
  if (bytes == kCode)
    for (int i = 0; i < size; ++i) to[i] = from[byte_of(i)];
  else
    std::memcpy(to, from, size * bytes);
}

}  // namespace

Rest::Rest(const Parts& parts, const Arrays& tile, int begin, int size, int unit)
    : parts_(parts), tile_(tile), begin_(begin), size_(size), whole_(tile) {
  const auto take = [&](Values& values, const void* stored, size_t bytes) -> const void* {
    fill(values.bytes, stored, bytes, begin, size, unit);
    return values.bytes;
  };
  whole_.first += static_cast<uint32_t>(begin);
  whole_.to_come = 0;
  whole_.next = nullptr;
  whole_.grad = take(grad_, tile.grad, parts.grad_bytes);
  whole_.param = take(param_, tile.param, parts.value_bytes);
  whole_.new_param = param_.bytes;
  whole_.others_param = whole_.instead_of(whole_.param);
  if (tile.kept) whole_.kept = kept_;
  for (int word = 0; word < unit / kLanes && tile.kept; ++word) {
    const int left = std::clamp(size - word * kLanes, 0, kLanes);
    kept_[word] = left ? kept_lanes(tile.kept, begin + word * kLanes, left) : 0;
  }
  if (tile.rest) whole_.rest = take(rest_, tile.rest, parts.param_bytes);
  whole_.new_rest = rest_.bytes;
  for (size_t k = 0; k < parts.updated.size(); ++k) {
    whole_.new_states[k] = states_[k].bytes;
    if (is_of_blocks(k))
      whole_.new_states[k] = static_cast<char*>(tile.new_states[k]) + begin / kBlock * state_bytes(k);
    else
      take(states_[k], tile.states[k], state_bytes(k));
    whole_.states[k] = whole_.new_states[k];
    whole_.others_states[k] = whole_.instead_of(whole_.states[k]);
  }
}

void Rest::put_back() const {
  put(param_.bytes, tile_.new_param, parts_.value_bytes, begin_, size_);
  if (tile_.rest) put(rest_.bytes, tile_.new_rest, parts_.param_bytes, begin_, size_);
  for (size_t k = 0; k < parts_.updated.size(); ++k)
    if (!is_of_blocks(k)) put(states_[k].bytes, tile_.new_states[k], state_bytes(k), begin_, size_);
}

}  // namespace grokfused::cpu
