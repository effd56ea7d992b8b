// The CPU kernel: one parallel region over the elements of all tensors, one simd loop over
// ElementStep.
//
// Memory: 36 bytes per float32 element with the EMA filter (reads param, grad, exp_avg, exp_avg_sq,
// grad_ema: 20; writes all but grad: 16), 28 without; 24 with bfloat16 states.
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "../op.h"

// One build runs at each machine's own vector width; which clone is decided once, at load time.
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(GROK_NO_CLONES)
#define GROK_CPU_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define GROK_CPU_CLONES
#endif

namespace grokfused {
namespace {

// Below this many elements a second thread costs more than it saves.
constexpr int64_t kElementsPerThread = 16384;
constexpr int64_t kBlock = 1 << 20;

template <class Step>
GROK_CPU_CLONES void run_range(const Slice& slice, int64_t begin, int64_t end, const Scalars& scalars,
                               uint32_t key) {
  const Scalars numbers = scalars;  // copies: the compiler then knows that no store changes them
  for (; begin < end; begin += kBlock) {
    const Slice part = Step::part(slice, begin, std::min(kBlock, end - begin), key);
    const int size = static_cast<int>(part.size);
#pragma omp simd
    for (int i = 0; i < size; ++i) Step::run(part, i, numbers);
  }
}

// Threads share the elements evenly, whatever the tensors' sizes: element e of the whole list
// belongs to the tensor t with starts[t] <= e < starts[t + 1].
template <class Step>
void run_all(const Work& work) {
  if (work.found_inf && *work.found_inf != 0) return;
  std::vector<int64_t> starts{0};
  for (const Slice& slice : work.slices) starts.push_back(starts.back() + slice.size);
  torch::stable::parallel_for(0, starts.back(), kElementsPerThread, [&](int64_t begin, int64_t end) {
    size_t t = std::upper_bound(starts.begin(), starts.end(), begin) - starts.begin() - 1;
    for (; begin < end; begin = starts[++t]) {
      const int64_t stop = std::min(end, starts[t + 1]);
      const Scalars scalars = unscaled(work.scalars[work.rows[t]], work.grad_scale);
      const uint32_t key = random_key(work.seed, static_cast<uint32_t>(scalars.step));
      run_range<Step>(work.slices[t], begin - starts[t], stop - starts[t], scalars, key);
    }
  });
  for (size_t t = 0; t < work.slices.size(); ++t) work.steps[t] = work.scalars[work.rows[t]].step;
}

Kernel choose_cpu_kernel(const Policies& policies) {
  Kernel kernel = nullptr;
  with_element_step(policies, [&](auto step) { kernel = &run_all<decltype(step)>; });
  return kernel;
}

const RegisterKernels registered("cpu", choose_cpu_kernel);

STABLE_TORCH_LIBRARY_IMPL(grokfused, CPU, library) {
  library.impl("adamw_step_", &adamw_step<choose_cpu_kernel>);
}

}  // namespace
}  // namespace grokfused
