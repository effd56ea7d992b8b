// Tensors in, Slices out: every condition on the op's arguments is checked here, for all devices,
// and before the first element changes. Nothing is repaired: what does not fit is refused by name.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "arguments.h"
#include "layout.h"
#include "step/fail.h"
#include "work.h"

namespace grokfused {

// What a kernel is chosen by and what it works on, checked. The arguments own what both point to.
struct CheckedStep {
  Policies policies;
  Work work;
};

inline const char* dtype_name(int32_t dtype) {
  if (dtype == aoti_torch_dtype_float32()) return "float32";
  if (dtype == aoti_torch_dtype_bfloat16()) return "bfloat16";
  if (dtype == aoti_torch_dtype_float16()) return "float16";
  if (dtype == aoti_torch_dtype_int32()) return "int32";
  return torch::headeronly::toString(
      torch::stable::detail::to<ScalarType>(torch::stable::detail::from(dtype)));
}

// What every tensor of one parameter must have in common with it, read once.
struct Placement {
  std::pair<int32_t, int32_t> device;
  Shape sizes, strides;
  explicit Placement(const Tensor& tensor)
      : device(tensor.device()), sizes(tensor.sizes()), strides(tensor.strides()) {}
};

// A tensor whose storage was freed still has its shape.
inline void check_memory(const char* name, const Tensor& tensor, size_t t) {
  if (tensor.numel() != 0 && !tensor.const_data())
    fail(name, "[", t, "] has no memory: its storage was freed");
}

// Messages are put together only when they are needed: this runs for every tensor of every step.
inline void check_like_param(const char* name, const Tensors& list, const Placement& param, size_t t,
                             int32_t dtype) {
  const Tensor& tensor = list[t];
  const Placement here(tensor);
  if (here.device != param.device) fail(name, "[", t, "] must be on the device of params[", t, "]");
  if (tensor.dtype() != dtype)
    fail(name, "[", t, "] must be ", dtype_name(dtype), ", got ", dtype_name(tensor.dtype()));
  if (!same_sizes(here.sizes, param.sizes))
    fail(name, "[", t, "] must have the shape of params[", t, "], ", text(param.sizes), ", got ",
         text(here.sizes));
  if (!same_order(param.sizes, here.strides, param.strides))
    fail(name, "[", t, "] must have the strides of params[", t, "], ", text(param.strides), ", got ",
         text(here.strides));
  check_memory(name, tensor, t);
}

// An array that the policies do not use has an empty list.
inline void check_length(const char* name, const Tensors& list, size_t count, bool used) {
  if (list.size() != (used ? count : 0))
    fail(name, " must hold ", used ? count : 0, " tensors (one per parameter, or none where the ",
         "options do not use it), got ", list.size());
}

inline void check_tensor(const StepArguments& in, size_t t, int32_t param_dtype, int32_t state_dtype) {
  const Tensor& param = in.params[t];
  if (param.dtype() != param_dtype)
    fail("params[", t, "] must be ", dtype_name(param_dtype), " like params[0], got ",
         dtype_name(param.dtype()));
  const Placement place(param);
  if (!param.is_contiguous() && !is_dense(place.sizes, place.strides))
    fail("params[", t, "] must fill its memory without gaps or overlaps, got shape ", text(place.sizes),
         " with strides ", text(place.strides));
  check_memory("params", param, t);
  check_like_param("grads", in.grads, place, t, param_dtype);
  check_like_param("exp_avgs", in.exp_avgs, place, t, state_dtype);
  check_like_param("exp_avg_sqs", in.exp_avg_sqs, place, t, state_dtype);
  if (!in.max_exp_avg_sqs.empty())
    check_like_param("max_exp_avg_sqs", in.max_exp_avg_sqs, place, t, state_dtype);
  if (!in.grad_emas.empty()) check_like_param("grad_emas", in.grad_emas, place, t, state_dtype);
  if (!in.kahan_comps.empty()) check_like_param("kahan_comps", in.kahan_comps, place, t, param_dtype);
}

// The modes say what the masks leave out; a tensor without a mask has one of no words.
inline void check_masks(const StepArguments& in) {
  check_length("masks", in.masks, in.params.size(), !in.masks.empty());
  if (in.mask_modes.size() != in.masks.size())
    fail("mask_modes must hold one integer per mask, got ", in.mask_modes.size(), " for ", in.masks.size());
  for (const int64_t mode : in.mask_modes) checked_mask_mode(mode);
  for (size_t t = 0; t < in.masks.size(); ++t) {
    const Tensor& mask = in.masks[t];
    const int64_t words = mask_words(in.params[t].numel());
    if (mask.dtype() != aoti_torch_dtype_int32() || !mask.is_contiguous() || mask.dim() != 1 ||
        (mask.numel() != 0 && mask.numel() != words))
      fail("masks[", t, "] must be contiguous int32 words, [", words, "] for params[", t, "] or [0], got ",
           dtype_name(mask.dtype()), " ", text(mask.sizes()));
    if (mask.device() != in.params[t].device())
      fail("masks[", t, "] must be on the device of params[", t, "]");
  }
}

using Device = std::pair<int32_t, int32_t>;  // type, index

inline void check_numbers(const char* name, const Tensor& tensor, const Device& device, bool right_shape,
                          const std::string& shape) {
  if (!right_shape || tensor.dtype() != aoti_torch_dtype_float32() || !tensor.is_contiguous())
    fail(name, " must be a contiguous float32 tensor of shape ", shape, ", got ", dtype_name(tensor.dtype()),
         " ", text(tensor.sizes()));
  if (tensor.device() != device)
    fail(name, " must be on the same device as scalars: all numbers are on the CPU or all with the params");
}

inline void check_scalars(const StepArguments& in) {
  const int64_t count = in.params.size();
  const Device device = in.scalars.device();
  if (!in.scalars.is_cpu() && (count == 0 || device != in.params[0].device()))
    fail("scalars must be on the CPU or on the device of params[0]");
  check_numbers("scalars", in.scalars, device,
                in.scalars.sizes().dim == 2 && in.scalars.sizes().data[1] == kScalarCount,
                "[rows, " + std::to_string(kScalarCount) + "]");
  check_numbers("steps", in.steps, device, in.steps.sizes().dim == 1 && in.steps.numel() == count,
                "[" + std::to_string(count) + "]");
  if (in.grad_scale) check_numbers("grad_scale", *in.grad_scale, device, in.grad_scale->numel() == 1, "[]");
  if (in.found_inf) check_numbers("found_inf", *in.found_inf, device, in.found_inf->numel() == 1, "[]");
  if (static_cast<int64_t>(in.rows.size()) != count)
    fail("rows must hold ", count, " integers, one per parameter, got ", in.rows.size());
  const int64_t table_rows = in.scalars.sizes().data[0];
  for (const int64_t row : in.rows)
    if (row < 0 || row >= table_rows) fail("rows must be in [0, ", table_rows, "), got ", row);
}

inline Slice slice_of(const StepArguments& in, size_t t) {
  Slice slice{};
  slice.param = in.params[t].mutable_data();
  slice.grad = in.grads[t].const_data();
  slice.exp_avg = in.exp_avgs[t].mutable_data();
  slice.exp_avg_sq = in.exp_avg_sqs[t].mutable_data();
  if (!in.max_exp_avg_sqs.empty()) slice.max_exp_avg_sq = in.max_exp_avg_sqs[t].mutable_data();
  if (!in.grad_emas.empty()) slice.grad_ema = in.grad_emas[t].mutable_data();
  if (!in.kahan_comps.empty()) slice.kahan_comp = in.kahan_comps[t].mutable_data();
  slice.size = in.params[t].numel();
  if (!in.masks.empty() && in.masks[t].numel() != 0) {
    slice.mask = static_cast<const uint32_t*>(in.masks[t].const_data());
    slice.mask_mode = checked_mask_mode(in.mask_modes[t]);
  }
  return slice;
}

inline Work work_of(const StepArguments& in) {
  Work work;
  for (size_t t = 0; t < in.params.size(); ++t) work.slices.push_back(slice_of(in, t));
  work.rows = in.rows;
  work.scalars = static_cast<const Scalars*>(in.scalars.const_data());
  work.steps = static_cast<float*>(in.steps.mutable_data());
  if (in.grad_scale) work.grad_scale = static_cast<const float*>(in.grad_scale->const_data());
  if (in.found_inf) work.found_inf = static_cast<const float*>(in.found_inf->const_data());
  work.numbers_on_device = !in.scalars.is_cpu();
  work.device_index = in.params[0].device().second;
  work.seed = static_cast<uint32_t>(in.seed);
  return work;
}

inline CheckedStep checked_step(const StepArguments& in) {
  const size_t count = in.params.size();
  check_length("grads", in.grads, count, true);
  check_length("exp_avgs", in.exp_avgs, count, true);
  check_length("exp_avg_sqs", in.exp_avg_sqs, count, true);
  check_length("max_exp_avg_sqs", in.max_exp_avg_sqs, count, in.amsgrad);
  check_length("grad_emas", in.grad_emas, count, in.grad_filter != "none");
  const bool rounded = count != 0 && in.params[0].dtype() != aoti_torch_dtype_float32();
  check_length("kahan_comps", in.kahan_comps, count, rounded && in.param_rounding == "kahan");
  check_masks(in);
  check_scalars(in);
  if (count == 0) return {};
  const int32_t param_dtype = in.params[0].dtype(), state_dtype = in.exp_avgs[0].dtype();
  for (size_t t = 0; t < count; ++t) check_tensor(in, t, param_dtype, state_dtype);
  return {{dtype_name(param_dtype), dtype_name(state_dtype), in.state_rounding, in.param_rounding,
           in.grad_filter, in.decay, in.amsgrad},
          work_of(in)};
}

}  // namespace grokfused
