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

template <class Stored, class Table>
void walk(const Table& table, int64_t chunks) {
  for (blockIdx.x = 0; blockIdx.x < static_cast<unsigned>(chunks); ++blockIdx.x)
    if constexpr (Stored::kIn8Bits) {
      for (unsigned first = 0; first < kThreads; first += warp::kThreads)
        warp::run([&](unsigned lane) {
          threadIdx.x = first + lane;
          adamw_kernel<Stored>(table);
        });
    } else {
      for (threadIdx.x = 0; threadIdx.x < kThreads; ++threadIdx.x) adamw_kernel<Stored>(table);
    }
}

// `processors`: as many as there would be; `small`: in small tables, where they suffice.
template <class Stored>
void walk_all(const Work& work, const Choices& choices, int processors, bool small) {
  using Real = typename Stored::Real;
  for (int64_t begin = 0; begin < static_cast<int64_t>(work.slices.size());) {
    const Launch<Real> launch(work, choices, begin, processors);
    if (small)
      launch.with_table([&](const auto& table) { walk<Stored>(table, launch.chunks()); });
    else
      walk<Stored>(launch.template table<LargeTable<Real>>(), launch.chunks());
    begin = launch.end();
  }
}

// Calls use(param, state) with the formats for which a kernel is compiled: as csrc/cuda/launcher.h does.
template <class Use>
void with_formats(const Choices& choices, Use&& use) {
  const auto with_states = [&](auto param) {
    with_state_format<decltype(param)>(choices.state, [&](auto state) { use(param, state); });
  };
  if (choices.in_8_bits())
    return is_16_bits(choices.param) ? use(In16Bits{}, In8BitBlocks{}) : use(Float32{}, In8BitBlocks{});
  if (choices.param == Format::kFloat64) return with_states(Float64{});
  if (choices.param == Format::kFloat32) return with_states(Float32{});
  if (choices.param == Format::kBFloat16) return with_states(BFloat16{});
  with_states(Float16{});
}

}  // namespace

extern "C" {

int64_t shim_slice_bytes() { return sizeof(Slice); }

// Marks every element that the blocks of all launches visit, visits[t][i] += 1, and every tensor that a
// launch begins, begun[t] += 1. Returns the number of launches.
int32_t shim_cover(const int64_t* sizes, int32_t tensors, int32_t processors, int32_t** visits,
                   int32_t* begun) {
  Work work;
  work.slices.resize(tensors);
  for (int32_t t = 0; t < tensors; ++t) work.slices[t].size = sizes[t];
  work.rows.assign(tensors, 0);
  const Scalars scalars{};
  work.scalars = &scalars;
  int32_t launches = 0;
  for (int64_t begin = 0; begin < static_cast<int64_t>(work.slices.size()); ++launches) {
    const Launch<float> launch(work, {}, begin, processors);
    launch.with_table([&](const auto& table) {
      for (int32_t chunk = 0; chunk < launch.chunks(); ++chunk) {
        const int32_t k = table.tensor_of(chunk);
        const int32_t t = static_cast<int32_t>(begin) + k;
        const int64_t first = table.begin_of(chunk, k), end = std::min(first + table.chunk_size, sizes[t]);
        begun[t] += first == 0;
        for (int64_t i = first; i < end; ++i) ++visits[t][i];
      }
    });
    begin = launch.end();
  }
  return launches;
}

// Returns how many bytes of argument the first launch over tensors copies, and, in `chunks`, its blocks.
int64_t shim_launch(const int64_t* sizes, int32_t tensors, int32_t processors, int64_t* chunks) {
  Work work;
  work.slices.resize(tensors);
  for (int32_t t = 0; t < tensors; ++t) work.slices[t].size = sizes[t];
  work.rows.assign(tensors, 0);
  const Scalars scalars{};
  work.scalars = &scalars;
  const Launch<float> launch(work, {}, 0, processors);
  *chunks = launch.chunks();
  int64_t bytes = 0;
  launch.with_table([&](const auto& table) { bytes = sizeof table; });
  return bytes;
}

// Returns 0, or 1 where the names select no kernel. Numbers are "on the device": the kernel reads them.
int shim_step(const Slice* slices, int32_t tensors, const int64_t* rows, const void* scalars,
              const void* grad_scale, const float* found_inf, uint32_t seed, const char* param_dtype,
              const char* state_dtype, const char* window_dtype, const char* state_rounding,
              const char* param_rounding, const char* grad_filter, const char* decay, int amsgrad,
              int window_size, int processors, int small, int numbers_on_device) {
  Work work;
  work.slices.assign(slices, slices + tensors);
  work.rows.assign(rows, rows + tensors);
  work.scalars = scalars;
  work.grad_scale = grad_scale;
  work.found_inf = found_inf;
  work.seed = seed;
  work.numbers_on_device = numbers_on_device != 0;
  try {
    const Policies policies{param_dtype, state_dtype, window_dtype, state_rounding, param_rounding,
                            grad_filter, decay,       amsgrad != 0, window_size};
    const Choices choices = choices_of(policies);
    with_grad_filter(policies.grad_filter, [&](auto filter) {
      using Step = ElementStep<decltype(filter), EitherSecondMoment>;
      with_formats(choices, [&](auto param, auto state) {
        walk_all<StoredStep<decltype(param), decltype(state), Step>>(work, choices, processors, small != 0);
      });
    });
    return 0;
  } catch (const std::runtime_error&) {
    return 1;
  }
}
}
