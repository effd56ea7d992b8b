// The launcher: a bucket on the current stream, in one launch but for very many tensors.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "../work.h"
#include "kernel.h"

// torch declares it in shim.h only where torch itself was built with CUDA; so this file compiles
// everywhere, and links where a kernel can run.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);

namespace grokfused::cuda {

inline void cuda_succeed(cudaError_t error, const char* what) {
  if (error != cudaSuccess) fail(what, ": ", cudaGetErrorString(error));
}

inline cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  if (aoti_torch_get_current_cuda_stream(device, &stream)) fail("torch knows no current stream");
  return static_cast<cudaStream_t>(stream);
}

inline bool is_captured(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  cuda_succeed(cudaStreamIsCapturing(stream, &status), "the current stream cannot be used");
  return status != cudaStreamCaptureStatusNone;
}

template <class Stored>
void run(const Work& work, const Choices& choices) {
  using Real = typename Stored::Real;
  const torch::stable::accelerator::DeviceGuard guard(work.device_index);
  const cudaStream_t stream = current_stream(work.device_index);
  const bool captured = is_captured(stream);
  if (captured && !work.numbers_on_device)
    fail("a CUDA graph would replay this step's numbers for ever: make the optimizer with capturable=True, ",
         "and take one step before the capture");
  int processors = 0;
  cuda_succeed(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, work.device_index),
               "the device cannot be asked for its multiprocessors");
  for (int64_t begin = 0; begin < static_cast<int64_t>(work.slices.size());) {
    const Launch<Real> launch(work, choices, begin, processors);
    launch.with_table([&](const auto& table) {
      adamw_kernel<Stored><<<static_cast<unsigned>(launch.chunks()), kThreads, 0, stream>>>(table);
    });
    cuda_succeed(cudaGetLastError(), "the kernel cannot be launched");
    begin = launch.end();
  }
}

template <class Param, class State>
Kernel kernel_in(const Policies& policies) {
  Kernel kernel{nullptr, choices_of(policies), {}};
  with_grad_filter(policies.grad_filter, [&](auto filter) {
    using Step = ElementStep<decltype(filter), EitherSecondMoment>;
    kernel.states = state_rows<Step>(kernel.choices);
    kernel.run = run<StoredStep<Param, State, Step>>;
  });
  return kernel;
}

// The kernel for parameters of one format. Compiled for each in a file of its own, which a build runs side by
// side; and so are all of states in 8 bits.
template <class Format>
Kernel kernel_for(const Policies& policies) {
  Kernel kernel{};
  with_state_format<Format>(choices_of(policies).state,
                            [&](auto state) { kernel = kernel_in<Format, decltype(state)>(policies); });
  return kernel;
}
Kernel kernel_of_8_bits(const Policies& policies);

extern template Kernel kernel_for<Float64>(const Policies&);
extern template Kernel kernel_for<Float32>(const Policies&);
extern template Kernel kernel_for<BFloat16>(const Policies&);
extern template Kernel kernel_for<Float16>(const Policies&);

}  // namespace grokfused::cuda
