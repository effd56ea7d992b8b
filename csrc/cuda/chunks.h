// How one launch covers tensors of any sizes: they are cut into chunks, and each block steps one chunk.
// Plain code of the host and the device; it knows neither torch nor the CUDA runtime.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <vector>

#include "../step/portable.h"
#include "../work.h"

namespace grokfused {

constexpr int64_t kChunkSize = 1 << 15;  // elements; not tuned on a GPU yet

// An empty tensor has one too, of no elements: its step counter has to advance as well.
inline int32_t chunk_count(int64_t size) {
  return static_cast<int32_t>(std::max<int64_t>(1, (size + kChunkSize - 1) / kChunkSize));
}

// The numbers of a step that only the device knows; null where they are on the host, or not given. `Real`,
// here and below: in which the elements are computed.
template <class Real>
struct DeviceNumbers {
  const ScalarsOf<Real>* scalars;
  const Real* grad_scale;
  const float* found_inf;
};

// What a kernel reads of its launch. Chunks are numbered through all tensors: those of tensor t begin
// with first_chunks[t] and end before first_chunks[t + 1].
template <class Real>
struct Table {
  const Slice* slices;
  const ScalarsOf<Real>* scalars;  // the rows
  const int32_t* rows;             // tensor -> its row of scalars
  const int32_t* first_chunks;     // [tensors + 1]
  int32_t tensors;
  uint32_t seed;
  Choices choices;
  DeviceNumbers<Real> numbers;

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
  GROK_HD ScalarsOf<Real> scalars_of(int32_t tensor) const {
    const ScalarsOf<Real>* on_device = numbers.scalars;
    if (!on_device) return scalars[rows[tensor]];
    assume_global(on_device);
    return on_device[rows[tensor]];
  }
};

// A table that owns its memory and travels as the kernel's argument: 32,764 bytes is what CUDA 12.1 and
// later take on sm_70 and later.
template <class Real>
struct ArgumentTable {
  static constexpr int32_t kTensors = 256, kRows = 64 * sizeof(float) / sizeof(Real);
  Slice slices[kTensors];
  ScalarsOf<Real> scalars[kRows];  // unused where numbers.scalars is set
  int32_t rows[kTensors];
  int32_t first_chunks[kTensors + 1];
  int32_t tensors;
  uint32_t seed;
  Choices choices;
  DeviceNumbers<Real> numbers;

  GROK_HD Table<Real> table() const {
    return {slices, scalars, rows, first_chunks, tensors, seed, choices, numbers};
  }
};
static_assert(sizeof(ArgumentTable<float>) <= 32764 && sizeof(ArgumentTable<double>) <= 32764,
              "a kernel takes no more");

// A table in the device's memory: any number of tensors.
template <class Real>
struct DeviceTable {
  Table<Real> pointers;
  GROK_HD Table<Real> table() const { return pointers; }
};

inline std::vector<int32_t> first_chunks(const std::vector<Slice>& slices) {
  std::vector<int32_t> first{0};
  for (const Slice& slice : slices) first.push_back(first.back() + chunk_count(slice.size));
  return first;
}

// The tensors [begin, end) of some work as one launch, on the host: rows of scalars that are used, each once.
template <class Real>
struct LaunchPlan {
  std::vector<Slice> slices;
  std::vector<ScalarsOf<Real>> scalars;  // empty where the device knows them
  std::vector<int32_t> rows, first;
  DeviceNumbers<Real> numbers{};
  uint32_t seed;
  Choices choices;

  LaunchPlan(const Work& work, const Choices& choices, size_t begin, size_t end)
      : slices(work.slices.begin() + begin, work.slices.begin() + end),
        first(first_chunks(slices)),
        seed(work.seed),
        choices(choices) {
    if (work.numbers_on_device)
      numbers = {static_cast<const ScalarsOf<Real>*>(work.scalars), static_cast<const Real*>(work.grad_scale),
                 work.found_inf};
    std::map<int64_t, int32_t> places;  // row of the work -> row of the plan
    for (size_t t = begin; t < end; ++t) {
      const int64_t row = work.rows[t];
      if (work.numbers_on_device) {
        rows.push_back(static_cast<int32_t>(row));
        continue;
      }
      const auto [place, is_new] = places.emplace(row, static_cast<int32_t>(scalars.size()));
      if (is_new) scalars.push_back(work.unscaled_row<Real>(t));
      rows.push_back(place->second);
    }
  }

  int32_t tensors() const { return static_cast<int32_t>(slices.size()); }
  int32_t chunks() const { return first.back(); }
  bool fits_argument() const {
    return tensors() <= ArgumentTable<Real>::kTensors && scalars.size() <= size_t{ArgumentTable<Real>::kRows};
  }

  ArgumentTable<Real> argument_table() const {
    ArgumentTable<Real> table;
    std::copy(slices.begin(), slices.end(), table.slices);
    std::copy(scalars.begin(), scalars.end(), table.scalars);
    std::copy(rows.begin(), rows.end(), table.rows);
    std::copy(first.begin(), first.end(), table.first_chunks);
    table.tensors = tensors();
    table.seed = seed;
    table.choices = choices;
    table.numbers = numbers;
    return table;
  }
};

}  // namespace grokfused
