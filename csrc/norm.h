// The sum of squares of gradients as Python holds them. It must not know what the sum is for.
#pragma once

#include <vector>

#include "cpu/norm.h"
#include "place.h"

namespace grokfused {

// (sum, whether one of the gradients is of float64), or None where one is anything but a plain tensor of the
// CPU whose elements fill one stretch of memory, as they are: that is for Python to mend.
inline py::object sum_of_squares(const Table& table, const py::list& grads) {
  std::vector<py::object> held;
  std::vector<cpu::Values> all;
  bool wide = false;
  for (const py::handle grad : grads) {
    held.push_back(py::reinterpret_borrow<py::object>(grad));
    DLTensor tensor;
    if (!table.is_plain(Py_TYPE(grad.ptr())) || !table.read(grad, tensor)) return py::none();
    const Shape sizes = tensor.sizes(), strides = tensor.steps();
    const uint32_t dtype = real_of(dtype_of(tensor));
    const bool dense = is_contiguous(sizes, strides) || is_dense(sizes, strides);
    if (tensor.device_type != kCpu || !dense || table.read.is_unresolved(grad.ptr())) return py::none();
    if (dtype_name(dtype).empty() || dtype == kUInt8) return py::none();
    const int64_t size = element_count(sizes) * (is_complex(dtype_of(tensor)) ? 2 : 1);
    if (size && !tensor.data) return py::none();
    wide |= dtype == kFloat64;
    all.push_back({tensor.address(), size, param_format_named(dtype_name(dtype))});
  }
  double sum;
  {
    const py::gil_scoped_release others_run;
    sum = cpu::sum_of_squares(all);
  }
  return py::make_tuple(sum, wide);
}

}  // namespace grokfused
