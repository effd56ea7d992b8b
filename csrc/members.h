// What a step is asked to step. It knows groups and gradients, and reads no tensor.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>

#include "place.h"
#include "python.h"

namespace grokfused {

constexpr size_t kAtOnce = 16;  // tensors whose memory is fetched together

// Parameters of the groups that have a gradient, those gradients, and the numbers of their groups.
inline py::tuple with_grads(const Table& table, const py::list& groups) {
  const py::object params_name = interned("params"), grad_name = interned("grad");
  py::list params, grads, numbers;
  for (size_t number = 0; number < groups.size(); ++number) {
    const py::list owned = groups[number][params_name];
    const py::int_ own(number);
    for (size_t k = 0; k < owned.size(); ++k) {
      if (k % kAtOnce == 0)
        for (size_t ahead = k; ahead < std::min(owned.size(), k + kAtOnce); ++ahead)
          table.read.prefetch(at(owned, ahead));
      const auto grad = py::reinterpret_steal<py::object>(PyObject_GetAttr(at(owned, k), grad_name.ptr()));
      if (!grad) throw py::error_already_set();
      if (grad.is_none()) continue;
      params.append(py::handle(at(owned, k)));
      grads.append(grad);
      numbers.append(own);
    }
  }
  return py::make_tuple(params, grads, numbers);
}

// What is stepped: an entry per place. `keys`: the parameters as groups and states know them; `params`: those
// that are stepped, which are the same but for compiled code. `fitted`: place -> the gradient to take
// instead, as it is; None before Python has looked at what does not fit.
struct Members {
  py::list keys, params, grads, groups;
  py::object states, fitted;
  py::object table;  // Python's, of which the walk reads
};

}  // namespace grokfused
