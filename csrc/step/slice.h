// Where the elements of one tensor lie. Addresses only: what the bytes mean is storage.h's subject.
#pragma once

#include <cstdint>

#include "mask.h"

namespace grokfused {

constexpr int kMaxStates = 7;

// Element i of every array is the i-th element in memory order, the same for all arrays of a slice.
struct Slice {
  void* param;
  const void* grad;
  void* states[kMaxStates];  // in the order of the kernel's state rows; null beyond them
  const uint32_t* mask;      // a bit per element (mask.h); null where every element takes the step
  float* step;  // where the device numbers the steps: its counter, which the kernel advances; else null
  int64_t size;
  uint32_t first;  // the index in its tensor of the element at these addresses, as the random bits count
  MaskMode mask_mode;
};

}  // namespace grokfused
