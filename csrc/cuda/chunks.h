// How one launch covers tensors of any sizes: they are cut into chunks, and each block steps one chunk.
// Plain code of the host and the device; it knows neither torch nor the CUDA runtime.
#pragma once

#include <cstdint>
#include <vector>

#include "../step/portable.h"
#include "../step/scalars.h"
#include "../step/slice.h"

namespace grokfused {

constexpr int64_t kChunkSize = 1 << 15;  // elements; not tuned on a GPU yet

inline int32_t chunk_count(int64_t size) {
  return static_cast<int32_t>((size + kChunkSize - 1) / kChunkSize);
}

// What a kernel reads of its launch. Chunks are numbered through all tensors: those of tensor t begin
// with first_chunks[t] and end before first_chunks[t + 1].
struct Table {
  const Slice* slices;
  const Scalars* scalars;       // the rows
  const int32_t* rows;          // tensor -> its row of scalars
  const int32_t* first_chunks;  // [tensors + 1]
  int32_t tensors;

  // The tensor that a chunk belongs to: the last one that begins at or before it.
  GROK_HD int32_t tensor_of(int32_t chunk) const {
    int32_t low = 0, high = tensors;
    while (high - low > 1) {
      const int32_t middle = (low + high) / 2;
      if (first_chunks[middle] <= chunk)
        low = middle;
      else
        high = middle;
    }
    return low;
  }
  GROK_HD int64_t begin_of(int32_t chunk, int32_t tensor) const {
    return int64_t{chunk - first_chunks[tensor]} * kChunkSize;
  }
};

// A table that owns its memory and travels as the kernel's argument: 32,764 bytes is what CUDA 12.1 and
// later take on sm_70 and later.
struct ArgumentTable {
  static constexpr int32_t kTensors = 400, kRows = 64;
  Slice slices[kTensors];
  Scalars scalars[kRows];
  int32_t rows[kTensors];
  int32_t first_chunks[kTensors + 1];
  int32_t tensors;

  GROK_HD Table table() const { return {slices, scalars, rows, first_chunks, tensors}; }
};
static_assert(sizeof(ArgumentTable) <= 32764, "a kernel takes no more");

// A table in the device's memory: any number of tensors.
struct DeviceTable {
  Table pointers;
  GROK_HD Table table() const { return pointers; }
};

inline std::vector<int32_t> first_chunks(const std::vector<Slice>& slices) {
  std::vector<int32_t> first{0};
  for (const Slice& slice : slices) first.push_back(first.back() + chunk_count(slice.size));
  return first;
}

}  // namespace grokfused
