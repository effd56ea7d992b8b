// The launcher: a whole bucket in one launch on the current stream, and the op's registration for CUDA.
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <vector>

#include "../check.h"
#include "kernel.h"

// torch declares it in shim.h only where torch itself was built with CUDA; so this file compiles
// everywhere, and links where a kernel can run.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);

namespace grokfused {
namespace {

void cuda_succeed(cudaError_t error, const char* what) {
  if (error != cudaSuccess) fail(what, ": ", cudaGetErrorString(error));
}

// What a launch reads, on the host.
struct LaunchPlan {
  const CheckedStep& step;
  std::vector<Scalars> scalars;  // the rows that are used, each once
  std::vector<int32_t> rows, first;

  LaunchPlan(const CheckedStep& checked, const std::vector<int64_t>& table_rows)
      : step(checked), first(first_chunks(checked.slices)) {
    std::vector<int64_t> used(table_rows);
    std::sort(used.begin(), used.end());
    used.erase(std::unique(used.begin(), used.end()), used.end());
    scalars.resize(used.size());
    for (size_t t = 0; t < table_rows.size(); ++t) {
      const auto at = std::lower_bound(used.begin(), used.end(), table_rows[t]) - used.begin();
      rows.push_back(static_cast<int32_t>(at));
      scalars[at] = checked.scalars[t];
    }
  }

  int32_t tensors() const { return static_cast<int32_t>(step.slices.size()); }
  bool fits_argument() const {
    return tensors() <= ArgumentTable::kTensors && scalars.size() <= size_t{ArgumentTable::kRows};
  }
};

ArgumentTable argument_table(const LaunchPlan& plan) {
  ArgumentTable table;
  std::copy(plan.step.slices.begin(), plan.step.slices.end(), table.slices);
  std::copy(plan.scalars.begin(), plan.scalars.end(), table.scalars);
  std::copy(plan.rows.begin(), plan.rows.end(), table.rows);
  std::copy(plan.first.begin(), plan.first.end(), table.first_chunks);
  table.tensors = plan.tensors();
  return table;
}

// A table in device memory for the time of one launch, allocated and freed in the order of the stream.
class DeviceMemory {
 public:
  DeviceMemory(const LaunchPlan& plan, cudaStream_t stream) : stream_(stream) {
    const size_t slices = append(plan.step.slices), scalars = append(plan.scalars);
    const size_t rows = append(plan.rows), first = append(plan.first);
    cuda_succeed(cudaMallocAsync(&memory_, bytes_.size(), stream),
                 "the table of a launch cannot be allocated");
    // From pageable memory: the call returns when the bytes have been taken.
    cuda_succeed(cudaMemcpyAsync(memory_, bytes_.data(), bytes_.size(), cudaMemcpyHostToDevice, stream),
                 "the table of a launch cannot be copied");
    table_.pointers = {at<Slice>(slices), at<Scalars>(scalars), at<int32_t>(rows), at<int32_t>(first),
                       plan.tensors()};
  }
  DeviceMemory(const DeviceMemory&) = delete;
  ~DeviceMemory() { cudaFreeAsync(memory_, stream_); }
  const DeviceTable& table() const { return table_; }

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
  DeviceTable table_{};
};

template <class Step>
void launch(const LaunchPlan& plan, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(plan.first.back());
  if (plan.fits_argument()) {
    adamw_kernel<Step><<<blocks, kThreads, 0, stream>>>(argument_table(plan));
  } else {
    const DeviceMemory memory(plan, stream);
    adamw_kernel<Step><<<blocks, kThreads, 0, stream>>>(memory.table());
  }
  cuda_succeed(cudaGetLastError(), "the kernel cannot be launched");
}

cudaStream_t current_stream(int32_t device) {
  void* stream = nullptr;
  succeed(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

// A graph would replay this step's scalars for ever.
void refuse_capture(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  cuda_succeed(cudaStreamIsCapturing(stream, &status), "the current stream cannot be used");
  if (status != cudaStreamCaptureStatusNone) fail("a step cannot be captured in a CUDA graph yet");
}

void adamw_step_cuda(StableIValue* stack, uint64_t, uint64_t) {
  const StepArguments in(stack);
  const CheckedStep step = checked_step(in);
  if (step.slices.empty()) return;
  const int32_t device = in.params[0].device().second;
  const torch::stable::accelerator::DeviceGuard guard(device);
  const cudaStream_t stream = current_stream(device);
  refuse_capture(stream);
  const LaunchPlan plan(step, in.rows);
  if (plan.first.back() > 0)
    with_element_step(step.param_dtype, step.state_dtype, in.state_rounding, in.grad_filter, in.decay,
                      in.amsgrad, [&](auto chosen) { launch<decltype(chosen)>(plan, stream); });
  auto* counters = static_cast<float*>(in.steps.mutable_data());
  for (size_t t = 0; t < step.scalars.size(); ++t) counters[t] = step.scalars[t].step;
}

STABLE_TORCH_LIBRARY_IMPL(grokfused, CUDA, library) { library.impl("adamw_step_", &adamw_step_cuda); }

}  // namespace
}  // namespace grokfused
