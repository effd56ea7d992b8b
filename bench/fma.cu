// The kernel once more, for bench/fma.py only: compiled with and without fused multiply-adds, to show what
// one rounding per operation costs. What is measured is float32 with the EMA filter.
#include "cuda/kernel.h"

using namespace grokfused;

// Steps one tensor; returns the CUDA error, 0 for success.
extern "C" int fma_step(const Slice* slice, const Scalars* scalars) {
  using Step = StoredStep<Float32, Float32, ElementStep<Ema, EitherSecondMoment>>;
  Work work;
  work.slices = {*slice};
  work.rows = {0};
  work.scalars = scalars;
  const Choices choices =
      choices_of({"float32", "float32", "float32", "nearest", "nearest", "ema", "decoupled",
                  /*amsgrad=*/false, /*window_size=*/0});
  const Launch<float> launch(work, choices, 0, /*processors=*/132);
  adamw_kernel<Step><<<static_cast<unsigned>(launch.chunks()), kThreads>>>(launch.table<LargeTable<float>>());
  return static_cast<int>(cudaGetLastError());
}
