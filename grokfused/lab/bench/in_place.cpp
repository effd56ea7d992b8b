// How fast a machine moves what a step moves: arrays are read, or read and written where they lie, by the
// threads of a step and all at once, without its arithmetic. Compiled by in_place.py, not part of
// grokfused._C.
#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#if defined(__x86_64__) && defined(__gnu_linux__)
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CLONES
#endif

namespace {

constexpr int64_t kLine = 64;  // bytes
// What was fastest with two AVX-512 cores, of 1 to 16 lines of an array in a row, fetched 16 to 160 lines
// ahead into either cache: of five arrays 1 or 2 lines (16 take 1.1 times as long), of one 8 or more.
constexpr int64_t kInARow = 10, kAhead = 32 * kLine;  // the first of all arrays together
constexpr int64_t kLinesPerThread = 1024;             // at least: 16,384 elements of float32, as in csrc/cpu
constexpr int64_t kMostArrays = 16;

}  // namespace

extern "C" {

// An array of one tensor. It begins at a line and has whole ones.
struct Array {
  char* data;
  int64_t lines;
};
}

namespace {

struct Pass {
  const Array* arrays;  // of the first tensor, then of the next
  int64_t reads, count;
  uint64_t flip;
  std::vector<int64_t> starts;  // of each tensor's rounds, among those of all
  std::atomic<uint64_t> seen;
};

// One tensor's rounds from `begin` up to `end` of `rounds`: in each, a line of its longest array, and of the
// others in proportion.
CLONES uint64_t touch(const Array* arrays, int64_t reads, int64_t count, int64_t rounds, int64_t begin,
                      int64_t end, uint64_t flip) {
  if (begin == end) return 0;  // of a tensor without elements, say
  typedef uint64_t Vector __attribute__((vector_size(64), aligned(64), may_alias));
  const Vector flips = {flip, flip, flip, flip, flip, flip, flip, flip};
  Vector read = {};
  // The line of a round is (round * per_round) >> 32, which is the last one's end where rounds end.
  uint64_t per_round[kMostArrays];
  char* at[kMostArrays];
  const auto line = [&](int64_t k, int64_t round) {
    return arrays[k].data + (static_cast<uint64_t>(round) * per_round[k] >> 32) * kLine;
  };
  for (int64_t k = 0; k < count; ++k) {
    per_round[k] = ((static_cast<uint64_t>(arrays[k].lines) << 32) + rounds - 1) / rounds;
    at[k] = line(k, begin);
  }
  int64_t lines = 0;
  for (int64_t k = 0; k < count; ++k) lines += arrays[k].lines;
  const int64_t in_a_row = std::max<int64_t>(1, kInARow * rounds / lines);
  for (int64_t round = begin; round < end;) {
    round = std::min(round + in_a_row, end);
    for (int64_t k = 0; k < count; ++k) {
      char* const stop = line(k, round);
      if (k < reads)
        for (char* p = at[k]; p < stop; p += kLine) {
          read ^= *reinterpret_cast<const Vector*>(p);
          __builtin_prefetch(p + kAhead);
        }
      else
        for (char* p = at[k]; p < stop; p += kLine) {
          *reinterpret_cast<Vector*>(p) ^= flips;
          __builtin_prefetch(p + kAhead);
        }
      at[k] = stop;
    }
  }
  uint64_t all = 0;
  for (int k = 0; k < 8; ++k) all |= read[k];
  return all;
}

void touch_all(int64_t begin, int64_t end, void* of) {
  Pass& pass = *static_cast<Pass*>(of);
  const auto& starts = pass.starts;
  size_t t = std::upper_bound(starts.begin(), starts.end(), begin) - starts.begin() - 1;
  uint64_t read = 0;
  for (; begin < end; begin = starts[++t])
    read |= touch(pass.arrays + t * pass.count, pass.reads, pass.count, starts[t + 1] - starts[t],
                  begin - starts[t], std::min(end, starts[t + 1]) - starts[t], pass.flip);
  if (read & pass.flip) pass.seen = read;  // with 0 never, which the compiler does not know
}

}  // namespace

// Goes through the arrays of all tensors, `count` of each: the first `reads` are read, and of the others each
// word is written xor `flip`. Returns 0, or that it could not.
extern "C" int in_place(const Array* arrays, int64_t tensors, int64_t reads, int64_t count, uint64_t flip) {
  if (count > kMostArrays) return 1;
  Pass pass{arrays, reads, count, flip, {0}, 0};
  for (int64_t t = 0; t < tensors; ++t) {
    int64_t rounds = 0;
    for (int64_t k = 0; k < count; ++k) rounds = std::max(rounds, arrays[t * count + k].lines);
    pass.starts.push_back(pass.starts.back() + rounds);
  }
  return torch_parallel_for(0, pass.starts.back(), kLinesPerThread, touch_all, &pass);
}
