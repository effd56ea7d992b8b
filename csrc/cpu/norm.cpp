// Memory: reads each gradient once: 4 bytes per float32 element, 2 of 16 bits, 8 of float64.
#include "norm.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>

#include "../step/norm.h"
#include "clones.h"
#include "reading.h"
#include "storage.h"
#include "tile.h"

namespace grokfused::cpu {
namespace {

constexpr int kPiecesPerThread = 8;  // below so many a second thread costs more than it saves

constexpr uint16_t kNoRest[kTile] = {};  // zeros, whose sign is nothing to a square

// Neighbours that one instruction adds at best. Lanes are written as vectors of them, because a compiler
// would keep an array of lanes in memory.
constexpr int kWide = 8, kVectors = kNormLanes / kWide;
typedef double Doubles __attribute__((vector_size(kWide * sizeof(double))));

GROK_HD void fetch_ahead(const void* values, size_t bytes) {
  for (size_t line = 0; line < bytes; line += kCacheLine)
    __builtin_prefetch(static_cast<const char*>(values) + kReadAhead + line, 0, 2);
}

// Of pieces that lie behind one another, all read side by side. Only one alone may be cut.
template <class Real, int kPieces>
GROK_CPU_CLONES void sum_pieces(const Real* values, int size, double* pieces) {
  typedef Real Reals __attribute__((vector_size(kWide * sizeof(Real))));
  Doubles sums[kPieces][kVectors] = {};
  int i = 0;
  for (; i + kNormLanes <= size; i += kNormLanes) {
#pragma GCC unroll 16
    for (int k = 0; k < kPieces * kVectors; ++k) {
      const Real* at = values + k / kVectors * kNormPiece + i;
      if (k % kVectors == 0) fetch_ahead(at, kNormLanes * sizeof *at);
      Reals reals;
      std::memcpy(&reals, at + k % kVectors * kWide, sizeof reals);
      const Doubles wide = __builtin_convertvector(reals, Doubles);
      sums[k / kVectors][k % kVectors] += wide * wide;
    }
  }
  for (int piece = 0; piece < kPieces; ++piece) {
    double lanes[kNormLanes];
    std::memcpy(lanes, sums[piece], sizeof lanes);
    for (int lane = 0; i + lane < size; ++lane) lanes[lane] += square(values[i + lane]);
    pieces[piece] = 0;
    for (const double lane : lanes) pieces[piece] += lane;
  }
}

// Sums `kStreams` pieces where there are so many, or one; returns how many.
template <class Real>
int sum_some(const Real* values, int64_t size, int64_t most, double* pieces) {
  if (most < kStreams || size < kStreams * kNormPiece) {
    sum_pieces<Real, 1>(values, static_cast<int>(std::min(size, kNormPiece)), pieces);
    return 1;
  }
  sum_pieces<Real, kStreams>(values, kNormPiece, pieces);
  return kStreams;
}

// Sums pieces of one tensor, `first` and the next ones, `most` or fewer; returns how many.
int sum_next(const Values& of, int64_t first, int64_t most, double* pieces) {
  const int64_t begin = first * kNormPiece, size = of.size - begin;
  const void* values = static_cast<const char*>(of.data) + begin * bytes_of(of.format);
  if (of.format == Format::kFloat64) return sum_some(static_cast<const double*>(values), size, most, pieces);
  const Widen widen = widening(of.format);
  if (!widen) return sum_some(static_cast<const float*>(values), size, most, pieces);
  float wide[kNormPiece];
  const int in_piece = static_cast<int>(std::min(size, kNormPiece));
  for (int i = 0; i < in_piece; i += kTile) {
    const auto* narrow = static_cast<const uint16_t*>(values) + i;
    fetch_ahead(narrow, kTile * sizeof *narrow);
    widen(narrow, kNoRest, wide + i, std::min(in_piece - i, kTile));
  }
  return sum_some(wide, in_piece, 1, pieces);
}

}  // namespace

double sum_of_squares(const std::vector<Values>& all) {
  std::vector<int64_t> starts{0};
  for (const Values& of : all) starts.push_back(starts.back() + (of.size + kNormPiece - 1) / kNormPiece);
  std::vector<double> pieces(starts.back());
  torch::stable::parallel_for(0, starts.back(), kPiecesPerThread, [&](int64_t begin, int64_t end) {
    size_t t = std::upper_bound(starts.begin(), starts.end(), begin) - starts.begin() - 1;
    for (int64_t piece = begin; piece < end;) {
      while (piece >= starts[t + 1]) ++t;
      piece += sum_next(all[t], piece - starts[t], end - piece, &pieces[piece]);
    }
  });
  double sum = 0;
  for (const double piece : pieces) sum += piece;
  return sum;
}

}  // namespace grokfused::cpu
