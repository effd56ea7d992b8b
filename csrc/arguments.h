// The op's arguments, taken off the dispatcher's stack. TORCH_BOX would do it with a shared pointer
// per tensor; for a model of a thousand small parameters that costs as much as the step itself.
#pragma once

#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "layout.h"
#include "step/fail.h"

namespace grokfused {

using torch::headeronly::ScalarType;

inline void succeed(AOTITorchError error) {
  if (error) fail("a call into libtorch failed");
}

// Owns one handle of a tensor; the dtype and device numbers are libtorch's own.
class Tensor {
 public:
  explicit Tensor(AtenTensorHandle handle) : handle_(handle) {}
  Tensor(Tensor&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Tensor& operator=(Tensor&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Tensor() {
    if (handle_) aoti_torch_delete_tensor_object(handle_);
  }

  int32_t dtype() const { return get<int32_t>(aoti_torch_get_dtype); }
  int64_t numel() const { return get<int64_t>(aoti_torch_get_numel); }
  bool is_contiguous() const { return get<bool>(aoti_torch_is_contiguous); }
  bool is_cpu() const { return device().first == aoti_torch_device_type_cpu(); }
  void* mutable_data() const { return get<void*>(torch_get_mutable_data_ptr); }
  const void* const_data() const { return get<const void*>(torch_get_const_data_ptr); }
  int64_t dim() const { return get<int64_t>(aoti_torch_get_dim); }
  Shape sizes() const { return {get<int64_t*>(aoti_torch_get_sizes), dim()}; }
  Shape strides() const { return {get<int64_t*>(aoti_torch_get_strides), dim()}; }
  std::pair<int32_t, int32_t> device() const {
    return {get<int32_t>(aoti_torch_get_device_type), get<int32_t>(aoti_torch_get_device_index)};
  }

 private:
  template <class Value>
  Value get(AOTITorchError (*getter)(AtenTensorHandle, Value*)) const {
    Value value{};
    succeed(getter(handle_, &value));
    return value;
  }

  AtenTensorHandle handle_;
};

using Tensors = std::vector<Tensor>;

template <class Value>
Value take(StableIValue boxed) {
  return torch::stable::detail::to<Value>(boxed);
}

template <>
inline Tensor take<Tensor>(StableIValue boxed) {
  return Tensor(torch::stable::detail::to<AtenTensorHandle>(boxed));
}

template <>
inline Tensors take<Tensors>(StableIValue boxed) {
  const auto list = torch::stable::detail::to<StableListHandle>(boxed);
  size_t count = 0;
  succeed(torch_list_size(list, &count));
  Tensors tensors;
  tensors.reserve(count);
  for (size_t t = 0; t < count; ++t) {
    StableIValue element = 0;
    succeed(torch_list_get_item(list, t, &element));
    tensors.push_back(take<Tensor>(element));
  }
  succeed(torch_delete_list(list));
  return tensors;
}

template <>
inline std::optional<Tensor> take<std::optional<Tensor>>(StableIValue boxed) {
  const auto handle = torch::stable::detail::to<std::optional<AtenTensorHandle>>(boxed);
  if (!handle) return std::nullopt;
  return Tensor(*handle);
}

// In the order of the schema (csrc/op.cpp). The fields are initialised in that order too, so each
// takes the next value of the stack.
struct StepArguments {
  Tensors params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, grad_emas, kahan_comps, masks;
  Tensor steps, scalars;
  std::vector<int64_t> rows;
  std::string grad_filter, decay;
  bool amsgrad;
  std::string state_rounding, param_rounding;
  int64_t seed;
  std::vector<int64_t> mask_modes;
  std::optional<Tensor> grad_scale, found_inf;

  explicit StepArguments(const StableIValue* next)
      : params(take<Tensors>(*next++)),
        grads(take<Tensors>(*next++)),
        exp_avgs(take<Tensors>(*next++)),
        exp_avg_sqs(take<Tensors>(*next++)),
        max_exp_avg_sqs(take<Tensors>(*next++)),
        grad_emas(take<Tensors>(*next++)),
        kahan_comps(take<Tensors>(*next++)),
        masks(take<Tensors>(*next++)),
        steps(take<Tensor>(*next++)),
        scalars(take<Tensor>(*next++)),
        rows(take<std::vector<int64_t>>(*next++)),
        grad_filter(take<std::string>(*next++)),
        decay(take<std::string>(*next++)),
        amsgrad(take<bool>(*next++)),
        state_rounding(take<std::string>(*next++)),
        param_rounding(take<std::string>(*next++)),
        seed(take<int64_t>(*next++)),
        mask_modes(take<std::vector<int64_t>>(*next++)),
        grad_scale(take<std::optional<Tensor>>(*next++)),
        found_inf(take<std::optional<Tensor>>(*next++)) {}
};

}  // namespace grokfused
