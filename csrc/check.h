// Tensors in, Slices out: every condition on the op's arguments is checked here, for all devices,
// and before the first element changes. Nothing is repaired: what does not fit is refused by name.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "arguments.h"
#include "layout.h"
#include "step/fail.h"
#include "step/rounding.h"
#include "step/scalars.h"
#include "step/slice.h"

namespace grokfused {

// What one launch needs, checked. The tensors that own the memory outlive it.
struct CheckedStep {
  std::string param_dtype, state_dtype;
  std::vector<Slice> slices;
  std::vector<Scalars> scalars;  // slice -> its numbers
};

inline std::string dtype_name(int32_t dtype) {
  if (dtype == aoti_torch_dtype_float32()) return "float32";
  if (dtype == aoti_torch_dtype_bfloat16()) return "bfloat16";
  if (dtype == aoti_torch_dtype_float16()) return "float16";
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
  check_like_param("grads", in.grads, place, t, param_dtype);
  check_like_param("exp_avgs", in.exp_avgs, place, t, state_dtype);
  check_like_param("exp_avg_sqs", in.exp_avg_sqs, place, t, state_dtype);
  if (!in.max_exp_avg_sqs.empty())
    check_like_param("max_exp_avg_sqs", in.max_exp_avg_sqs, place, t, state_dtype);
  if (!in.grad_emas.empty()) check_like_param("grad_emas", in.grad_emas, place, t, state_dtype);
}

inline void check_numbers(const char* name, const Tensor& tensor, bool right_shape,
                          const std::string& shape) {
  if (!right_shape || tensor.dtype() != aoti_torch_dtype_float32() || !tensor.is_cpu() ||
      !tensor.is_contiguous())
    fail(name, " must be a contiguous float32 CPU tensor of shape ", shape, ", got ",
         dtype_name(tensor.dtype()), " ", text(tensor.sizes()));
}

inline void check_scalars(const StepArguments& in) {
  const int64_t count = in.params.size();
  check_numbers("steps", in.steps, in.steps.sizes().dim == 1 && in.steps.numel() == count,
                "[" + std::to_string(count) + "]");
  check_numbers("scalars", in.scalars,
                in.scalars.sizes().dim == 2 && in.scalars.sizes().data[1] == kScalarCount,
                "[rows, " + std::to_string(kScalarCount) + "]");
  if (static_cast<int64_t>(in.rows.size()) != count)
    fail("rows must hold ", count, " integers, one per parameter, got ", in.rows.size());
  const int64_t table_rows = in.scalars.sizes().data[0];
  for (const int64_t row : in.rows)
    if (row < 0 || row >= table_rows) fail("rows must be in [0, ", table_rows, "), got ", row);
}

inline Slice slice_of(const StepArguments& in, size_t t, uint32_t key) {
  Slice slice{};
  slice.param = in.params[t].mutable_data();
  slice.grad = in.grads[t].const_data();
  slice.exp_avg = in.exp_avgs[t].mutable_data();
  slice.exp_avg_sq = in.exp_avg_sqs[t].mutable_data();
  if (!in.max_exp_avg_sqs.empty()) slice.max_exp_avg_sq = in.max_exp_avg_sqs[t].mutable_data();
  if (!in.grad_emas.empty()) slice.grad_ema = in.grad_emas[t].mutable_data();
  slice.size = in.params[t].numel();
  slice.random_key = key;
  return slice;
}

inline CheckedStep checked_step(const StepArguments& in) {
  const size_t count = in.params.size();
  check_length("grads", in.grads, count, true);
  check_length("exp_avgs", in.exp_avgs, count, true);
  check_length("exp_avg_sqs", in.exp_avg_sqs, count, true);
  check_length("max_exp_avg_sqs", in.max_exp_avg_sqs, count, in.amsgrad);
  check_length("grad_emas", in.grad_emas, count, in.grad_filter != "none");
  check_scalars(in);
  CheckedStep out;
  if (count == 0) return out;
  const int32_t param_dtype = in.params[0].dtype(), state_dtype = in.exp_avgs[0].dtype();
  for (size_t t = 0; t < count; ++t) check_tensor(in, t, param_dtype, state_dtype);
  out.param_dtype = dtype_name(param_dtype);
  out.state_dtype = dtype_name(state_dtype);
  const auto* table = static_cast<const Scalars*>(in.scalars.const_data());
  for (size_t t = 0; t < count; ++t) {
    const Scalars& scalars = table[in.rows[t]];
    const auto step = static_cast<uint32_t>(scalars.step);
    out.scalars.push_back(scalars);
    out.slices.push_back(slice_of(in, t, random_key(static_cast<uint32_t>(in.seed), step)));
  }
  return out;
}

}  // namespace grokfused
