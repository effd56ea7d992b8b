// Memory: reads each gradient once: 4 bytes per float32 element, 2 of 16 bits, 8 of float64.
#include "norm.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>

#include "../step/norm.h"
#include "clones.h"
#include "storage.h"
#include "tile.h"

namespace grokfused::cpu {
namespace {

// Bytes that are fetched ahead: a processor that looks ahead by itself stops at each page. And pieces below
// which a second thread costs more than it saves.
constexpr int kAhead = 8192, kPiecesPerThread = 8;

constexpr uint16_t kNoRest[kTile] = {};  // zeros, whose sign is nothing to a square

// Neighbours that one instruction adds at best. Lanes are written as vectors of them, because a compiler
// would keep an array of lanes in memory.
constexpr int kWide = 8, kVectors = kNormLanes / kWide;
typedef double Doubles __attribute__((vector_size(kWide * sizeof(double))));

GROK_HD void fetch_ahead(const void* values, size_t bytes) {
  for (size_t line = 0; line < bytes; line += kCacheLine)
    __builtin_prefetch(static_cast<const char*>(values) + kAhead + line, 0, 2);
}

template <class Real>
GROK_CPU_CLONES double sum_piece(const Real* values, int size) {
  typedef Real Reals __attribute__((vector_size(kWide * sizeof(Real))));
  Doubles sums[kVectors] = {};
  int i = 0;
  for (; i + kNormLanes <= size; i += kNormLanes) {
    fetch_ahead(values + i, kNormLanes * sizeof *values);
#pragma GCC unroll 4
    for (int k = 0; k < kVectors; ++k) {
      Reals reals;
      std::memcpy(&reals, values + i + k * kWide, sizeof reals);
      const Doubles wide = __builtin_convertvector(reals, Doubles);
      sums[k] += wide * wide;
    }
  }
  double lanes[kNormLanes], sum = 0;
  std::memcpy(lanes, sums, sizeof lanes);
  for (int lane = 0; i < size; ++i, ++lane) lanes[lane] += square(values[i]);
  for (const double lane : lanes) sum += lane;
  return sum;
}

double sum_of_piece(const Values& of, int64_t first) {
  const int size = static_cast<int>(std::min(of.size - first, kNormPiece));
  const void* values = static_cast<const char*>(of.data) + first * bytes_of(of.format);
  if (of.format == Format::kFloat64) return sum_piece(static_cast<const double*>(values), size);
  const Widen widen = widening(of.format);
  if (!widen) return sum_piece(static_cast<const float*>(values), size);
  float wide[kNormPiece];
  for (int i = 0; i < size; i += kTile) {
    const auto* narrow = static_cast<const uint16_t*>(values) + i;
    fetch_ahead(narrow, kTile * sizeof *narrow);
    widen(narrow, kNoRest, wide + i, std::min(size - i, kTile));
  }
  return sum_piece(wide, size);
}

}  // namespace

double sum_of_squares(const std::vector<Values>& all) {
  std::vector<int64_t> starts{0};
  for (const Values& of : all) starts.push_back(starts.back() + (of.size + kNormPiece - 1) / kNormPiece);
  std::vector<double> pieces(starts.back());
  torch::stable::parallel_for(0, starts.back(), kPiecesPerThread, [&](int64_t begin, int64_t end) {
    size_t t = std::upper_bound(starts.begin(), starts.end(), begin) - starts.begin() - 1;
    for (int64_t piece = begin; piece < end; ++piece) {
      while (piece >= starts[t + 1]) ++t;
      pieces[piece] = sum_of_piece(all[t], (piece - starts[t]) * kNormPiece);
    }
  });
  double sum = 0;
  for (const double piece : pieces) sum += piece;
  return sum;
}

}  // namespace grokfused::cpu
