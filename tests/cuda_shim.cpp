// Walks the grid of the CUDA kernel on the CPU: the few words of CUDA that csrc/cuda/kernel.h uses, and a
// C function that tests/test_cuda_kernel.py calls. One thread after the other; the kernel has no barrier.
#define __global__
#define __grid_constant__
#define __launch_bounds__(...)

struct Index {
  unsigned x = 0;
};
static Index blockIdx, threadIdx;

#include "cuda/kernel.h"

#include <algorithm>
#include <cstring>
#include <string>

using namespace grokfused;

namespace {

template <class Step, class Source>
void walk(const Source& source, int32_t chunks) {
  for (blockIdx.x = 0; blockIdx.x < static_cast<unsigned>(chunks); ++blockIdx.x)
    for (threadIdx.x = 0; threadIdx.x < kThreads; ++threadIdx.x) adamw_kernel<Step>(source);
}

template <class Step>
void walk_both(const Slice* slices, int32_t tensors, const Scalars* scalars, const int32_t* rows,
               int32_t row_count, bool as_argument) {
  const std::vector<int32_t> first = first_chunks({slices, slices + tensors});
  if (!as_argument)
    return walk<Step>(DeviceTable{{slices, scalars, rows, first.data(), tensors}}, first.back());
  static ArgumentTable table;
  std::copy(slices, slices + tensors, table.slices);
  std::copy(scalars, scalars + row_count, table.scalars);
  std::copy(rows, rows + tensors, table.rows);
  std::copy(first.begin(), first.end(), table.first_chunks);
  table.tensors = tensors;
  walk<Step>(table, first.back());
}

}  // namespace

extern "C" {

int64_t shim_chunk_size() { return kChunkSize; }
int64_t shim_slice_bytes() { return sizeof(Slice); }

// Marks every element that the blocks visit: visits[t][i] += 1.
void shim_cover(const int64_t* sizes, int32_t tensors, int32_t** visits) {
  std::vector<Slice> slices(tensors);
  for (int32_t t = 0; t < tensors; ++t) slices[t].size = sizes[t];
  const std::vector<int32_t> first = first_chunks(slices);
  const Table table{slices.data(), nullptr, nullptr, first.data(), tensors};
  for (int32_t chunk = 0; chunk < first.back(); ++chunk) {
    const int32_t t = table.tensor_of(chunk);
    const int64_t begin = table.begin_of(chunk, t), end = std::min(begin + kChunkSize, sizes[t]);
    for (int64_t i = begin; i < end; ++i) ++visits[t][i];
  }
}

// Returns 0, or 1 where the names select no kernel.
int shim_step(const Slice* slices, int32_t tensors, const Scalars* scalars, const int32_t* rows,
              int32_t row_count, const char* param_dtype, const char* state_dtype, const char* rounding,
              const char* grad_filter, const char* decay, int amsgrad, int as_argument) {
  try {
    with_element_step(param_dtype, state_dtype, rounding, grad_filter, decay, amsgrad != 0, [&](auto chosen) {
      walk_both<decltype(chosen)>(slices, tensors, scalars, rows, row_count, as_argument != 0);
    });
    return 0;
  } catch (const std::runtime_error&) {
    return 1;
  }
}
}
