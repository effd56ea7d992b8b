// One parameter with all that belongs to it, as Python holds it: found, read, and compared with the
// parameter. It must not know how places are sorted, or what a kernel does.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <array>
#include <vector>

#include "hyperparameters.h"
#include "overlap.h"
#include "policy.h"
#include "python.h"
#include "step/block8.h"
#include "step/element.h"
#include "step/slice.h"
#include "tensors.h"

namespace grokfused {

constexpr size_t kMaxArrays = 12;  // rows of the table; a step uses kMaxStates of them at most

// A row of grokfused.state.arrays.
struct ArrayRow {
  py::object name;
  int planes;
  Of of;  // what is of the parameter's dtype is for those of 16 bits only, bases for states of 8 bits only
  bool stays;

  int planes_of(const Policy& policy) const { return planes == kWindow ? policy.window_size : planes; }
};

// What is the same in every walk of this process: how a tensor is read, the table of a step's arrays, and the
// names by which states and DTensors are asked.
struct Table {
  TensorReader read;
  std::vector<ArrayRow> arrays;
  std::vector<py::object> plain;  // torch.Tensor and torch.nn.Parameter: no DTensors
  py::object dtensor_class;       // () -> DTensor, or None where there can be none
  PolicyTable policies;
  HyperparameterReader hyperparameters{};
  py::object step = interned("step"), mask = interned("mask");
  py::object shard = interned("_local_tensor"), spec = interned("_spec"), version = interned("_version");
  py::object mesh = interned("mesh"), placements = interned("placements");

  bool is_plain(PyTypeObject* type) const {
    const auto is = [&](const py::object& one) { return one.ptr() == reinterpret_cast<PyObject*>(type); };
    return std::any_of(plain.begin(), plain.end(), is);
  }
};

// Held while a step is taken. Of DTensors, once they are read, this process's shards.
struct Place {
  py::object param, grad, step, mask;
  std::array<py::object, kMaxArrays> states;  // array of the table -> its tensor, or nothing
  double start = 0;                           // the first step that the filter's memory saw
  bool has_more = false;                      // the state holds what Python has to look at
};

// A parameter as it was read.
struct Param {
  DLTensor tensor;
  py::object spec;  // how a DTensor is spread
  int64_t size;     // in real numbers
  uint32_t dtype;
  bool rounded;  // of 16 bits
  bool dense;    // its elements fill one stretch of memory, as they are
};

// Of the states of a place, and of its window; 0 where there is none.
struct Dtypes {
  uint32_t states = 0, window = 0;

  bool in_8_bits() const { return states == kUInt8; }

  // False where an array has another dtype than it has to have.
  bool take(Of of, uint32_t dtype, uint32_t param, uint32_t real) {
    if (of == Of::kWindow) window = dtype;
    if (of == Of::kStates && !states) states = dtype;
    const uint32_t wanted[] = {states, window, param, real, kInt32};
    return dtype == wanted[static_cast<size_t>(of)];
  }

  bool fit(uint32_t param) const {
    const auto fits = [&](uint32_t dtype) {
      if (param == kFloat64 || is_complex(param)) return dtype == param;
      return dtype == kFloat32 || dtype == kBFloat16;
    };
    const bool narrow = in_8_bits() && param != kFloat64 && !is_complex(param);
    return (narrow || fits(states)) && (!window || fits(window));
  }
};

// Reads the tensors of places, and says whether they fit their parameter. What does not is for Python to
// refuse by name, or to mend.
class PlaceReader {
 public:
  explicit PlaceReader(const Table& table) : table_(table) {}

  bool sharded = false;  // a DTensor was read

  void find(Place& place, const py::object& state, const Policy& policy) const {
    if (!state) return;
    Py_ssize_t found = 0;
    const auto get = [&](const py::object& name) {
      py::object held = entry(state.ptr(), name.ptr());
      if (held) ++found;
      return held;
    };
    for (size_t k = 0; k < table_.arrays.size(); ++k)
      if (policy.used[k] && table_.arrays[k].of != Of::kBases) place.states[k] = get(table_.arrays[k].name);
    place.step = get(table_.step);
    place.mask = get(table_.mask);
    if (!policy.start.is_none()) {
      const py::object noted = get(policy.start);
      const double after = noted ? PyFloat_AsDouble(noted.ptr()) : 0;
      const bool is_none = PyErr_Occurred() || !is_count(after) || (!noted && policy.window_size);
      if (PyErr_Occurred()) PyErr_Clear();
      if (is_none) place.has_more = true;
      place.start = after + 1;
    }
    if (!PyDict_CheckExact(state.ptr()) || found != PyDict_GET_SIZE(state.ptr()))
      look_for_more(place, state, policy);
  }

  // Bases, which few states have; and what a step without it makes wrong, which would have to go.
  void look_for_more(Place& place, const py::object& state, const Policy& policy) const {
    for (size_t k = 0; k < table_.arrays.size(); ++k) {
      const ArrayRow& array = table_.arrays[k];
      if (array.of == Of::kBases) place.states[k] = entry(state.ptr(), array.name.ptr());
      if (!array.stays && !policy.used[k] && entry(state.ptr(), array.name.ptr())) place.has_more = true;
    }
  }

  // Calls use(tensor) for what will be read; null where there is nothing.
  template <class Use>
  static void each(const Place& place, Use&& use) {
    for (const py::object* held : {&place.param, &place.grad, &place.step}) use(held->ptr());
    for (const py::object& held : place.states) use(held.ptr());
  }

  bool look_at_param(py::object& held, Param& param) {
    if (!read(held, param.tensor, param.spec)) return false;
    param.dtype = dtype_of(param.tensor);
    param.rounded = param.dtype == kBFloat16 || param.dtype == kFloat16;
    if (dtype_name(real_of(param.dtype)).empty() || param.dtype == kUInt8) return false;
    const Shape sizes = param.tensor.sizes(), strides = param.tensor.steps();
    param.size = element_count(sizes) * (is_complex(param.dtype) ? 2 : 1);
    param.dense = is_contiguous(sizes, strides) || is_dense(sizes, strides);
    if (!param.dense && overlaps_itself(sizes, strides)) return false;
    if (table_.read.is_unresolved(held.ptr())) param.dense = false;
    return true;
  }

  // `mended`: it is what Python has made of a gradient, to be taken as it is.
  bool look_at_grad(py::object& held, const Param& param, DLTensor& grad, bool mended) {
    py::object spec;
    return read(held, grad, spec) && (mended || spread_alike(spec, param.spec)) &&
           dtype_of(grad) == param.dtype && lies_like(grad, param) && !table_.read.is_unresolved(held.ptr());
  }

  bool look_at_state(py::object& held, const Param& param, int planes, DLTensor& state) {
    py::object spec;
    if (!read(held, state, spec) || table_.read.is_unresolved(held.ptr())) return false;
    if (planes == kOnePerBlock)
      return !spec && state.ndim == 1 && state.shape[0] == block_count(param.size) &&
             (state.strides[0] == 1 || state.shape[0] <= 1) && same_device(state, param.tensor);
    if (planes == 1) return spread_alike(spec, param.spec) && lies_like(state, param);
    const bool are_planes = state.ndim == param.tensor.ndim + 1 && state.shape[0] == planes &&
                            (param.size == 0 || state.strides[0] == element_count(param.tensor.sizes()));
    return are_planes && same_mesh(spec, param.spec) && lies_like(state.plane(), param);
  }

  bool read(py::object& held, DLTensor& tensor, py::object& spec) {
    if (!held) return false;
    if (!table_.is_plain(Py_TYPE(held.ptr())) && is_sharded(held.ptr())) {
      spec = attribute(held.ptr(), table_.spec);
      held = attribute(held.ptr(), table_.shard);
      sharded = true;
      if (!held) return false;
    }
    if (!table_.read(held, tensor)) return false;
    return tensor.data || element_count(tensor.sizes()) == 0;
  }

  // How often a tensor was written, as torch counts; 0 for one of inference mode, which counts nothing.
  long long version_of(const py::object& tensor) const {
    const py::object version = attribute(tensor.ptr(), table_.version);
    return version ? PyLong_AsLongLong(version.ptr()) : 0;
  }

 private:
  bool is_sharded(PyObject* tensor) {
    if (!dtensor_) dtensor_ = table_.dtensor_class();
    return !dtensor_.is_none() && PyObject_TypeCheck(tensor, reinterpret_cast<PyTypeObject*>(dtensor_.ptr()));
  }

  // True for two DTensors of the same mesh and placements, or for two plain tensors (state/sharding.py).
  bool spread_alike(const py::object& spec, const py::object& other) const {
    return spec.ptr() == other.ptr() || (same_mesh(spec, other) && same(spec, other, table_.placements));
  }
  // Enough for planes: they are spread by placements of their own, and compared by this process's shard.
  bool same_mesh(const py::object& spec, const py::object& other) const {
    return spec.ptr() == other.ptr() || (spec && other && same(spec, other, table_.mesh));
  }
  static bool same(const py::object& spec, const py::object& other, const py::object& name) {
    return attribute(spec.ptr(), name).ptr() == attribute(other.ptr(), name).ptr();
  }

  static bool lies_like(const DLTensor& tensor, const Param& param) {
    const Shape sizes = param.tensor.sizes();
    return same_device(tensor, param.tensor) && same_sizes(tensor.sizes(), sizes) &&
           (!param.dense || same_order(sizes, tensor.steps(), param.tensor.steps()));
  }

  const Table& table_;
  py::object dtensor_;  // once it was asked for
};

}  // namespace grokfused
