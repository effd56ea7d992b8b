// How one launch covers tensors of any sizes: they are cut into chunks of one size, and each block steps one
// chunk. What a kernel reads of its launch travels as its argument, so that nothing is allocated or copied,
// and a graph keeps it. Plain code of the host and the device; it knows neither torch nor the CUDA runtime.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>

#include "../step/portable.h"
#include "../work.h"

namespace grokfused {

constexpr int kThreads = 256;  // of a block

// Elements of the smallest chunk, of which a thread of a block steps one pack; larger ones are twice and
// twice as large, so that a chunk begins with a word of a mask. Where blocks would be more than a device
// keeps busy for so many waves, chunks grow: each costs the reading of its numbers.
constexpr int64_t kSmallestChunk = 1024, kBlocksPerProcessor = 16;

// The part of a tensor that a block steps, and what else there is to know of it.
struct Chunk : Slice {
  uint32_t random_key;
  uint32_t* bases;  // of states in 8 bits
};

// The numbers of a step that only the device knows; null where they are on the host, or not given. `Real`,
// here and below: in which the elements are computed.
template <class Real>
struct DeviceNumbers {
  const ScalarsOf<Real>* scalars;
  const Real* grad_scale;
  const float* found_inf;
};

// What a kernel reads of its launch. Chunks are numbered through all its tensors.
template <class RealNumber, int kMostTensors, int kMostRows, int kMostChunks>
struct LaunchTable {
  using Real = RealNumber;
  static constexpr int64_t kTensors = kMostTensors, kRows = kMostRows, kChunks = kMostChunks;
  static_assert(kMostTensors <= 256, "a chunk knows its tensor by one byte");

  Slice slices[kMostTensors];
  ScalarsOf<Real> scalars[kMostRows];  // those that are used, each once; or numbers.scalars has them
  int32_t rows[kMostTensors];          // tensor -> its row of scalars
  int32_t first_chunks[kMostTensors];
  uint8_t tensors[kMostChunks];  // chunk -> its tensor
  int64_t chunk_size;
  uint32_t seed;
  Choices choices;
  DeviceNumbers<Real> numbers;

  GROK_HD int32_t tensor_of(int32_t chunk) const { return tensors[chunk]; }
  GROK_HD int64_t begin_of(int32_t chunk, int32_t tensor) const {
    return (chunk - first_chunks[tensor]) * chunk_size;
  }
  GROK_HD ScalarsOf<Real> scalars_of(int32_t tensor) const {
    const ScalarsOf<Real>* on_device = numbers.scalars;
    if (!on_device) return scalars[rows[tensor]];
    assume_global(on_device);
    return on_device[rows[tensor]];
  }
};

// The driver copies the whole of it at each launch: 4 KB are taken in one go, and hold a small model; 32,764
// bytes are what CUDA 12.1 and later take on sm_70 and later.
template <class Real>
using SmallTable = LaunchTable<Real, 30, 16 / sizeof(Real), 448>;
template <class Real>
using LargeTable = LaunchTable<Real, 224, 256 / sizeof(Real), 4096>;
static_assert(sizeof(SmallTable<float>) <= 4096 && sizeof(SmallTable<double>) <= 4096);
static_assert(sizeof(LargeTable<float>) <= 32764 && sizeof(LargeTable<double>) <= 32764);

// An empty tensor has one too, of no elements: its step counter has to advance as well.
inline int64_t chunk_count(int64_t size, int64_t chunk_size) {
  return std::max<int64_t>(1, (size + chunk_size - 1) / chunk_size);
}

// The tensors of some work from `begin` on that one launch steps.
template <class Real>
class Launch {
 public:
  // `processors`: of the device.
  Launch(const Work& work, const Choices& choices, int64_t begin, int processors)
      : work_(work), choices_(choices), begin_(begin), end_(begin) {
    for (; end_ < static_cast<int64_t>(work.slices.size()) && end_ - begin < LargeTable<Real>::kTensors;
         ++end_) {
      if (work.numbers_on_device) continue;
      const auto next = static_cast<int32_t>(row_of_.size());  // the row of the table
      if (next == LargeTable<Real>::kRows && !row_of_.count(work.rows[end_])) break;
      row_of_.emplace(work.rows[end_], next);
    }
    const auto most = std::clamp<int64_t>(kBlocksPerProcessor * processors, LargeTable<Real>::kTensors,
                                          LargeTable<Real>::kChunks);
    while ((chunks_ = count_chunks()) > most) chunk_size_ *= 2;
  }

  int64_t end() const { return end_; }
  int64_t chunks() const { return chunks_; }

  // Calls use(table): a small one, where all fits there.
  template <class Use>
  void with_table(Use&& use) const {
    if (fits<SmallTable<Real>>())
      use(table<SmallTable<Real>>());
    else
      use(table<LargeTable<Real>>());
  }

  template <class Table>
  bool fits() const {
    return end_ - begin_ <= Table::kTensors && static_cast<int64_t>(row_of_.size()) <= Table::kRows &&
           chunks_ <= Table::kChunks;
  }

  template <class Table>
  Table table() const {
    Table table{};
    int64_t chunk = 0;
    for (int64_t t = begin_, k = 0; t < end_; ++t, ++k) {
      const int64_t count = chunk_count(work_.slices[t].size, chunk_size_);
      table.slices[k] = work_.slices[t];
      table.first_chunks[k] = static_cast<int32_t>(chunk);
      std::fill_n(table.tensors + chunk, count, static_cast<uint8_t>(k));
      chunk += count;
      table.rows[k] = static_cast<int32_t>(work_.rows[t]);
      if (work_.numbers_on_device) continue;
      table.rows[k] = row_of_.at(work_.rows[t]);
      table.scalars[table.rows[k]] = work_.unscaled_row<Real>(t);
    }
    table.chunk_size = chunk_size_;
    table.seed = work_.seed;
    table.choices = choices_;
    if (work_.numbers_on_device)
      table.numbers = {static_cast<const ScalarsOf<Real>*>(work_.scalars),
                       static_cast<const Real*>(work_.grad_scale), work_.found_inf};
    return table;
  }

 private:
  int64_t count_chunks() const {
    int64_t count = 0;
    for (int64_t t = begin_; t < end_; ++t) count += chunk_count(work_.slices[t].size, chunk_size_);
    return count;
  }

  const Work& work_;
  const Choices& choices_;
  int64_t begin_, end_;
  std::map<int64_t, int32_t> row_of_;  // row of the work -> row of the table
  int64_t chunk_size_ = kSmallestChunk, chunks_ = 0;
};

}  // namespace grokfused
