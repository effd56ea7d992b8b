// The kernel once more, for bench/fma.py only: compiled with and without fused multiply-adds, to show what
// one rounding per operation costs. What is measured is float32 with the EMA filter.
#include "cuda/kernel.h"

using namespace grokfused;

// Steps one tensor; returns the CUDA error, 0 for success.
extern "C" int fma_step(const Slice* slice, const Scalars* scalars) {
  using Step = ElementStep<Float32, Float32, Ema, DecoupledDecay, CurrentSecondMoment>;
  Work work;
  float step = 0;
  work.slices = {*slice};
  work.rows = {0};
  work.scalars = scalars;
  work.steps = &step;
  const LaunchPlan plan(work, 0, 1);
  adamw_kernel<Step><<<static_cast<unsigned>(plan.chunks()), kThreads>>>(plan.argument_table());
  return static_cast<int>(cudaGetLastError());
}
