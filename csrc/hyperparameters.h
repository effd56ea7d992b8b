// How a group's hyperparameters are read where they are plain: floats, in ranges that every check allows. All
// else (tensors, numpy's numbers, what schedules have driven further, errors) is for grokfused.step.scalars.
#pragma once

#include <cmath>

#include "python.h"
#include "step/scalars.h"

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

}  // namespace grokfused
