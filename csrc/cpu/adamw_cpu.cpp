// The CPU kernel: one parallel region over the elements of all tensors, one simd loop over
// ElementStep.
//
// Memory: 36 bytes per float32 element with the EMA filter (reads param, grad, exp_avg, exp_avg_sq,
// grad_ema: 20; writes all but grad: 16), 28 without; 24 with bfloat16 states.
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "../check.h"
#include "../step/element_step.h"
#include "adamw_cpu.h"

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
GROK_CPU_CLONES void run_range(const Slice& slice, int64_t begin, int64_t end, const Scalars& scalars) {
  const Scalars numbers = scalars;  // copies: the compiler then knows that no store changes them
  for (; begin < end; begin += kBlock) {
    const Slice part = Step::part(slice, begin, std::min(kBlock, end - begin));
    const int size = static_cast<int>(part.size);
#pragma omp simd
    for (int i = 0; i < size; ++i) Step::run(part, i, numbers);
  }
}

// Threads share the elements evenly, whatever the tensors' sizes: element e of the whole list
// belongs to the tensor t with starts[t] <= e < starts[t + 1].
template <class Step>
void run_all(const std::vector<Slice>& slices, const std::vector<Scalars>& scalars) {
  std::vector<int64_t> starts{0};
  for (const Slice& slice : slices) starts.push_back(starts.back() + slice.size);
  torch::stable::parallel_for(0, starts.back(), kElementsPerThread, [&](int64_t begin, int64_t end) {
    size_t t = std::upper_bound(starts.begin(), starts.end(), begin) - starts.begin() - 1;
    for (; begin < end; begin = starts[++t]) {
      const int64_t stop = std::min(end, starts[t + 1]);
      run_range<Step>(slices[t], begin - starts[t], stop - starts[t], scalars[t]);
    }
  });
}

void adamw_step_cpu(StableIValue* stack, uint64_t, uint64_t) {
  const StepArguments in(stack);
  const CheckedStep step = checked_step(in);
  if (step.slices.empty()) return;
  choose_cpu_kernel(step.param_dtype, step.state_dtype, in.state_rounding, in.grad_filter, in.decay,
                    in.amsgrad)(step.slices, step.scalars);
  auto* counters = static_cast<float*>(in.steps.mutable_data());
  for (size_t t = 0; t < step.scalars.size(); ++t) counters[t] = step.scalars[t].step;
}

STABLE_TORCH_LIBRARY_IMPL(grokfused, CPU, library) { library.impl("adamw_step_", &adamw_step_cpu); }

}  // namespace

CpuKernel choose_cpu_kernel(std::string_view param_dtype, std::string_view state_dtype,
                            std::string_view state_rounding, std::string_view grad_filter,
                            std::string_view decay, bool amsgrad) {
  CpuKernel kernel = nullptr;
  with_element_step(param_dtype, state_dtype, state_rounding, grad_filter, decay, amsgrad,
                    [&](auto chosen) { kernel = &run_all<decltype(chosen)>; });
  return kernel;
}

}  // namespace grokfused
