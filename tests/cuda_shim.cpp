// Walks the grid of the CUDA kernel on the CPU: the few words of CUDA that csrc/cuda/kernel.h uses, and a
// C function that tests/test_cuda_kernel.py calls. One thread after the other, but for steps of which threads
// exchange numbers: those of a warp take turns there.
#define __device__ inline
#define __global__
#define __grid_constant__
#define __launch_bounds__(...)

struct Index {
  unsigned x = 0;
};
static Index blockIdx, threadIdx;

#include "warp.h"

#include "cuda/kernel.h"

#include <algorithm>
#include <cstring>
#include <string>

using namespace grokfused;

namespace {

template <class Stored, class Source>
void walk(const Source& source, int32_t chunks) {
  for (blockIdx.x = 0; blockIdx.x < static_cast<unsigned>(chunks); ++blockIdx.x)
    if constexpr (Stored::States::kShares) {
      for (unsigned first = 0; first < kThreads; first += warp::kThreads)
        warp::run([&](unsigned lane) {
          threadIdx.x = first + lane;
          adamw_kernel<Stored>(source);
        });
    } else {
      for (threadIdx.x = 0; threadIdx.x < kThreads; ++threadIdx.x) adamw_kernel<Stored>(source);
    }
}

template <class Stored>
void walk_both(const Work& work, const Choices& choices, bool as_argument) {
  using Real = typename Stored::Real;
  const LaunchPlan<Real> plan(work, choices, 0, work.slices.size());
  if (as_argument) return walk<Stored>(plan.argument_table(), plan.chunks());
  walk<Stored>(DeviceTable<Real>{{plan.slices.data(), plan.scalars.data(), plan.rows.data(), plan.first.data(),
                            plan.tensors(), plan.seed, plan.choices, plan.numbers}},
               plan.chunks());
}

template <class Use>
void with_param_format(Format format, Use&& use) {
  if (format == Format::kFloat64) return use(Float64{});
  if (format == Format::kFloat32) return use(Float32{});
  if (format == Format::kBFloat16) return use(BFloat16{});
  use(Float16{});
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
  const Table<float> table{slices.data(), nullptr, nullptr, first.data(), tensors, 0, {}, {}};
  for (int32_t chunk = 0; chunk < first.back(); ++chunk) {
    const int32_t t = table.tensor_of(chunk);
    const int64_t begin = table.begin_of(chunk, t), end = std::min(begin + kChunkSize, sizes[t]);
    for (int64_t i = begin; i < end; ++i) ++visits[t][i];
  }
}

// Returns 0, or 1 where the names select no kernel. Numbers are "on the device": the kernel reads them.
int shim_step(const Slice* slices, int32_t tensors, const int64_t* rows, const void* scalars,
              const void* grad_scale, const float* found_inf, uint32_t seed, const char* param_dtype,
              const char* state_dtype, const char* state_rounding, const char* param_rounding,
              const char* grad_filter, const char* decay, int amsgrad, int as_argument,
              int numbers_on_device) {
  Work work;
  work.slices.assign(slices, slices + tensors);
  work.rows.assign(rows, rows + tensors);
  work.scalars = scalars;
  work.grad_scale = grad_scale;
  work.found_inf = found_inf;
  work.seed = seed;
  work.numbers_on_device = numbers_on_device != 0;
  try {
    const Policies policies{param_dtype, state_dtype, state_rounding, param_rounding,
                            grad_filter, decay,       amsgrad != 0};
    const Choices choices = choices_of(policies);
    with_element_step(policies, [&](auto step) {
      with_param_format(choices.param, [&](auto param) {
        with_state_format<decltype(param)>(choices.state, [&](auto state) {
          walk_both<StoredStep<decltype(param), decltype(state), decltype(step)>>(work, choices,
                                                                                  as_argument != 0);
        });
      });
    });
    return 0;
  } catch (const std::runtime_error&) {
    return 1;
  }
}
}
