// The launcher: a whole bucket in one launch on the current stream.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "../work.h"
#include "kernel.h"

// torch declares it in shim.h only where torch itself was built with CUDA; so this file compiles
// everywhere, and links where a kernel can run.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);

namespace grokfused::cuda {

inline void cuda_succeed(cudaError_t error, const char* what) {
  if (error != cudaSuccess) fail(what, ": ", cudaGetErrorString(error));
}

// A table in device memory for the time of one launch, allocated and freed in the order of the stream.
template <class Real>
class DeviceMemory {
 public:
  DeviceMemory(const LaunchPlan<Real>& plan, cudaStream_t stream) : stream_(stream) {
    const size_t slices = append(plan.slices), scalars = append(plan.scalars);
    const size_t rows = append(plan.rows), first = append(plan.first);
    cuda_succeed(cudaMallocAsync(&memory_, bytes_.size(), stream),
                 "the table of a launch cannot be allocated");
    // From pageable memory: the call returns when the bytes have been taken.
    cuda_succeed(cudaMemcpyAsync(memory_, bytes_.data(), bytes_.size(), cudaMemcpyHostToDevice, stream),
                 "the table of a launch cannot be copied");
    table_.pointers = {at<Slice>(slices), at<ScalarsOf<Real>>(scalars),
                       at<int32_t>(rows), at<int32_t>(first),
                       plan.tensors(),    plan.seed,
                       plan.choices,      plan.numbers};
  }
  DeviceMemory(const DeviceMemory&) = delete;
  ~DeviceMemory() { cudaFreeAsync(memory_, stream_); }
  const DeviceTable<Real>& table() const { return table_; }

 private:
  template <class Value>
  size_t append(const std::vector<Value>& values) {
    const size_t begin = (bytes_.size() + 15) / 16 * 16;
    bytes_.resize(begin + values.size() * sizeof(Value));
    std::memcpy(bytes_.data() + begin, values.data(), values.size() * sizeof(Value));
    return begin;
  }
  template <class Value>
  const Value* at(size_t begin) const {
    return reinterpret_cast<const Value*>(static_cast<char*>(memory_) + begin);
  }

  cudaStream_t stream_;
  std::vector<char> bytes_;
  void* memory_ = nullptr;
  DeviceTable<Real> table_{};
};

template <class Stored>
void launch(const LaunchPlan<typename Stored::Real>& plan, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(plan.chunks());
  if (plan.fits_argument()) {
    adamw_kernel<Stored><<<blocks, kThreads, 0, stream>>>(plan.argument_table());
  } else {
    const DeviceMemory<typename Stored::Real> memory(plan, stream);
    adamw_kernel<Stored><<<blocks, kThreads, 0, stream>>>(memory.table());
  }
  cuda_succeed(cudaGetLastError(), "the kernel cannot be launched");
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
  // A graph keeps a kernel's arguments, but not a table of which the host's copy is gone when it is replayed.
  const size_t count = work.slices.size(), most = captured ? size_t{ArgumentTable<Real>::kTensors} : count;
  for (size_t begin = 0; begin < count; begin += most)
    launch<Stored>(LaunchPlan<Real>(work, choices, begin, std::min(count, begin + most)), stream);
}

// The kernel for parameters of one format. Compiled for each in a file of its own, which a build runs side by
// side.
template <class Format>
Kernel kernel_for(const Policies& policies) {
  Kernel kernel{nullptr, choices_of(policies), {}};
  with_element_step(policies, [&](auto step) {
    kernel.states = state_rows<decltype(step)>(kernel.choices);
    with_state_format<Format>(kernel.choices.state, [&](auto state) {
      kernel.run = run<StoredStep<Format, decltype(state), decltype(step)>>;
    });
  });
  return kernel;
}

extern template Kernel kernel_for<Float64>(const Policies&);
extern template Kernel kernel_for<Float32>(const Policies&);
extern template Kernel kernel_for<BFloat16>(const Policies&);
extern template Kernel kernel_for<Float16>(const Policies&);

}  // namespace grokfused::cuda
