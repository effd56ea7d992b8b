// The sum of the squares of gradients, in an order that no number of threads and no vector's width changes.
// It must not know what the sum is for.
#pragma once

#include <cstdint>

#include "storage.h"

namespace grokfused {

// A tensor is cut into pieces. Element i of a piece is added to lane i % kNormLanes, one after the other;
// then the lanes are, and then the pieces, tensor by tensor.
constexpr int64_t kNormPiece = 4096;
constexpr int kNormLanes = 32;

// In float64, which holds it exactly but for gradients of float64.
GROK_HD double square(double value) { return value * value; }

}  // namespace grokfused
