// The CPU kernels: one parallel region over the elements of all tensors, which goes through them in tiles.
//
// Memory: 36 bytes per float32 element with the EMA filter (reads param, grad, exp_avg, exp_avg_sq,
// grad_ema: 20; writes all but grad: 16), 28 without, 48 with the mean of a window (reads besides those 28
// what leaves, the sum, and on average one value of the window: 12; writes what enters and the sum: 8), 42
// where that is bfloat16; 24 with the EMA filter and bfloat16 states; all twice for float64. Parameters of 16
// bits take 6 less, and 4 of these again with Kahan's rounding. A mask adds 0.125; a word of it that keeps
// nothing costs the param (4, or 2) where it zeroes, and nothing where it freezes.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "kernel.h"
#include "masked.h"

namespace grokfused {
namespace cpu {
namespace {

// Below this many elements a second thread costs more than it saves.
constexpr int64_t kElementsPerThread = 16384;

}  // namespace

// Threads share the elements evenly, whatever the tensors' sizes, but for a unit: element e of the whole list
// belongs to the tensor t with starts[t] <= e < starts[t + 1].
template <class Real>
void run_all(const Work& work, const Parts& parts) {
  const bool numbers_steps = work.numbers_on_device;  // as a GPU does: the tests let the CPU do it too
  if (numbers_steps && work.found_inf && *work.found_inf != 0) return;
  std::vector<int64_t> starts{0};
  for (const Slice& slice : work.slices) starts.push_back(starts.back() + slice.size);
  torch::stable::parallel_for(0, starts.back(), kElementsPerThread, [&](int64_t begin, int64_t end) {
    size_t t = std::upper_bound(starts.begin(), starts.end(), begin) - starts.begin() - 1;
    for (; begin < end; begin = starts[++t]) {
      const SliceScalars<Real> scalars(work.unscaled_row<Real>(t));
      const Slice* next = end > starts[t + 1] ? &work.slices[t + 1] : nullptr;
      const SliceStep step(parts, work.slices[t], next, scalars, work.seed);
      const int64_t first = unit_of(begin - starts[t]);
      const int64_t stop = end < starts[t + 1] ? unit_of(end - starts[t]) : work.slices[t].size;
      if (work.slices[t].mask)
        run_masked(step, first, stop);
      else
        step.run(first, stop, stop - first);
    }
  });
  for (size_t t = 0; numbers_steps && t < work.slices.size(); ++t)
    *work.slices[t].step = static_cast<float>(work.row<Real>(t).step);
}
template void run_all<float>(const Work&, const Parts&);
template void run_all<double>(const Work&, const Parts&);

}  // namespace cpu

namespace {

Kernel choose_cpu_kernel(const Policies& policies) {
  switch (param_format_named(policies.param_dtype)) {
    case Format::kBFloat16: return cpu::kernel_for<BFloat16>(policies);
    case Format::kFloat16: return cpu::kernel_for<Float16>(policies);
    case Format::kFloat64: return cpu::kernel_for<Float64>(policies);
    default: return cpu::kernel_for<Float32>(policies);
  }
}

const RegisterKernels registered("cpu", choose_cpu_kernel);

}  // namespace
}  // namespace grokfused
