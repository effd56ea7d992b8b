// How a group's hyperparameters are read, and the rows of scalars that the host derives. Read are those that
// are plain: floats, in ranges that every check allows. All else (tensors, numpy's numbers, what schedules
// have driven further, errors) is for grokfused.step.scalars.
#pragma once

#include <pybind11/stl.h>

#include <array>
#include <cmath>
#include <vector>

#include "python.h"
#include "rows.h"
#include "tensors.h"

namespace grokfused {

class HyperparameterReader {
 public:
  // False where something is not plain.
  bool operator()(PyObject* group, Hyperparameters& found) const {
    if (!PyDict_CheckExact(group)) return false;
    PyObject* betas = PyDict_GetItemWithError(group, betas_.ptr());
    PyObject* maximize = PyDict_GetItemWithError(group, maximize_.ptr());
    if (!betas || !PyTuple_CheckExact(betas) || PyTuple_GET_SIZE(betas) != 2) return false;
    if (maximize != Py_False && maximize != Py_True) return false;
    found.grad_factor = maximize == Py_True ? -1.0 : 1.0;
    const auto of = [&](const py::object& name) { return PyDict_GetItemWithError(group, name.ptr()); };
    return plain(of(lr_), found.lr) && share(PyTuple_GET_ITEM(betas, 0), found.beta1) &&
           share(PyTuple_GET_ITEM(betas, 1), found.beta2) && plain(of(eps_), found.eps) &&
           plain(of(weight_decay_), found.weight_decay) && share(of(alpha_), found.alpha) &&
           plain(of(lamb_), found.lamb);
  }

 private:
  static bool plain(PyObject* value, double& found) {
    if (!value || !PyFloat_CheckExact(value)) return false;
    found = PyFloat_AS_DOUBLE(value);
    return std::abs(found) <= kFloat32Max;
  }
  // In [0, 1).
  static bool share(PyObject* value, double& found) { return plain(value, found) && found >= 0 && found < 1; }

  static constexpr double kFloat32Max = 0x1.fffffep127;
  py::object lr_ = interned("lr"), betas_ = interned("betas"), eps_ = interned("eps");
  py::object weight_decay_ = interned("weight_decay"), alpha_ = interned("alpha"), lamb_ = interned("lamb");
  py::object maximize_ = interned("maximize");
};

// Rows of scalars, in float64 and rounded to float32.
class HostRows {
 public:
  // `ask`: Python's step_scalars. `start`: the first step that the filter's memory saw.
  void add(const py::object& group, const Gate& gate, double step, double start,
           const HyperparameterReader& read, const py::object& ask) {
    Hyperparameters of;
    if (!read(group.ptr(), of)) {
      const py::tuple row = ask(group, step, start);
      if (row.size() != kScalarCount) fail("a row of scalars is ", kScalarCount, " numbers long");
      for (const py::handle number : row) scalars_.push_back(PyFloat_AsDouble(number.ptr()));
      return;
    }
    const ScalarsOf<double> row = derive(of, gate, step, start);
    const auto* numbers = reinterpret_cast<const double*>(&row);
    scalars_.insert(scalars_.end(), numbers, numbers + kScalarCount);
  }

  void round() { rounded_.assign(scalars_.begin(), scalars_.end()); }

  const void* in(bool wide) const {
    return wide ? static_cast<const void*>(scalars_.data()) : rounded_.data();
  }

  std::vector<std::vector<double>> lists() const {
    std::vector<std::vector<double>> found;
    for (auto row = scalars_.begin(); row != scalars_.end(); row += kScalarCount)
      found.emplace_back(row, row + kScalarCount);
    return found;
  }

 private:
  std::vector<double> scalars_;
  std::vector<float> rounded_;
};

// `of`: the hyperparameters and the gate, in the order of Hyperparameters and Gate, and the tensors, or None,
// that lr, beta1 and beta2 are.
inline DeviceGroup device_group(const py::tuple& of, const TensorReader& read) {
  const auto [lr, beta1, beta2, eps, weight_decay, alpha, lamb, grad_factor, window, full_only, summed, after,
              until] = of[0].cast<std::array<double, 13>>();
  DeviceGroup group{{lr, beta1, beta2, eps, weight_decay, alpha, lamb, grad_factor},
                    {window, full_only, summed, after, until},
                    {},
                    {}};
  const auto rates = of[1].cast<std::array<py::object, 3>>();
  for (int k = 0; k < 3; ++k) {
    DLTensor tensor{};
    if (rates[k].is_none()) continue;
    if (!read(rates[k], tensor)) fail("a hyperparameter is no tensor that can be read");
    if (dtype_of(tensor) != kFloat32 && dtype_of(tensor) != kFloat64)
      fail("a rate must be float32 or float64");
    group.rates[k] = tensor.address();
    group.wide[k] = dtype_of(tensor) == kFloat64;
  }
  return group;
}

}  // namespace grokfused
