// One look at everything a step works on, where it is now: parameters, gradients, states, step counters and
// masks are read, held, compared with their parameter and sorted by what is done with them. Nothing is
// changed before `run`, and nothing of it is kept for the next step. It must not know the update.
#pragma once

#include <pybind11/stl.h>

#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bucket.h"
#include "overlap.h"
#include "tensors.h"

namespace grokfused {

// What is the same in every walk of this process: how a tensor is read, and the table of a step's arrays
// (grokfused.step.arrays).
struct Table {
  TensorReader read;
  std::vector<py::object> names;
  std::vector<bool> like_param;  // of the parameter's dtype, and only beside one of 16 bits; else the states'
  py::object choose;             // (name, parameter, dense) -> the backend that steps it
  py::object is_neg;             // torch.Tensor.is_neg
  py::object step = interned("step"), mask = interned("mask"), start = interned("grad_ema_start");
  py::object shard = interned("_local_tensor"), spec = interned("_spec"), version = interned("_version");
  py::object mesh = interned("mesh"), placements = interned("placements");
};

// What is stepped: an entry per place. `keys`: the parameters as groups and states know them; `params`: those
// that are stepped, which are the same but for compiled code. `fitted`: place -> the gradient to take
// instead, as it is; None before Python has looked at what does not fit.
struct Members {
  py::list keys, params, grads, groups;
  py::object states, fitted;
};

class Walk {
 public:
  Walk(const Table& table, Members members, const py::list& policies, const py::list& policy_of_group,
       const py::object& dtensor, const std::vector<std::string>& numbering)
      : table_(table), in_(std::move(members)), dtensor_(dtensor), stride_(kStates + table.names.size()) {
    for (const py::handle policy : policies) policies_.push_back(policy.cast<const Policy*>());
    for (const py::handle number : policy_of_group) policy_of_group_.push_back(number.cast<size_t>());
    for (const std::string& device : numbering) numbering_.push_back(device == "cpu" ? kCpu : kCuda);
    const size_t count = in_.params.size();
    if (in_.keys.size() != count || in_.grads.size() != count || in_.groups.size() != count)
      fail("a walk takes one key, parameter, gradient and group a place");
    held_.resize(count * stride_);
    extents_.reserve(count * stride_);
    starts_.resize(count);
    addresses_.reserve(table.names.size());
    Entries state_of(in_.states);
    for (size_t t = 0; t < count; ++t)
      if (!look(t, state_of(at(in_.keys, t)))) unfit.push_back(t);
    shared = sharing(extents_, count);
  }

  std::vector<size_t> unfit;  // places that Python has to look at before a walk can take them
  Sharing shared{};
  bool sharded = false;               // there is a DTensor
  std::vector<std::string> backends;  // those that were chosen
  std::vector<Bucket> buckets;
  std::vector<std::tuple<size_t, double, double>>
      keys;  // row -> group, steps so far, the filter's first step

  // The rows that the host has derived for `keys`, rounded to float32.
  void take_rows(const py::list& table) {
    if (table.size() != keys.size()) fail("a walk of ", keys.size(), " rows got ", table.size());
    scalars_.resize(table.size());
    float* field = &scalars_.data()->step;
    for (const py::handle row : table) {
      const auto numbers = py::reinterpret_borrow<py::tuple>(row);
      if (numbers.size() != kScalarCount) fail("a row of scalars is ", kScalarCount, " numbers long");
      for (const py::handle number : numbers) *field++ = static_cast<float>(PyFloat_AsDouble(number.ptr()));
    }
  }

  // Addresses: of the device's table of scalars, or 0 for the rows taken; `grad_scale` and `found_inf` of one
  // float or 0, where the scalars are.
  void run(size_t bucket, uintptr_t scalars, uintptr_t grad_scale, uintptr_t found_inf) {
    const auto* table = scalars ? reinterpret_cast<const Scalars*>(scalars) : scalars_.data();
    buckets.at(bucket).run(table, grad_scale, found_inf);
  }

  // The tensors of a bucket as lists, for a backend of Python's: by "param", "grad", "step", "mask" (with
  // None where there is none) and the names of the arrays it uses.
  py::dict lists(size_t index) const {
    const Bucket& bucket = buckets.at(index);
    py::dict found;
    const auto add = [&](const py::object& name, size_t what) {
      py::list list;
      for (const size_t t : bucket.places) {
        const py::object& tensor = held_[t * stride_ + what];
        list.append(tensor ? tensor : py::none());
      }
      found[name] = list;
    };
    add(py::str("param"), kParam);
    add(py::str("grad"), kGrad);
    add(py::str("step"), kStep);
    add(py::str("mask"), kMask);
    for (const size_t k : bucket.arrays) add(table_.names[k], kStates + k);
    return found;
  }

  std::vector<size_t> groups_of(size_t index) const {
    std::vector<size_t> found;
    for (const size_t t : buckets.at(index).places) found.push_back(group_of(t));
    return found;
  }
  std::vector<int64_t> modes_of(size_t index) const { return buckets.at(index).mask_modes(); }
  std::vector<double> starts_of(size_t index) const {
    std::vector<double> found;
    for (const size_t t : buckets.at(index).places) found.push_back(starts_[t]);
    return found;
  }

 private:
  static constexpr int32_t kCpu = 1, kCuda = 2;  // device types of DLPack
  enum Held : size_t { kParam, kGrad, kStep, kMask, kStates };

  size_t group_of(size_t t) const { return PyLong_AsSize_t(at(in_.groups, t)); }

  // One place while it is looked at.
  struct Look {
    size_t t;
    DLTensor param;
    py::object spec, state;
    int64_t size;
    bool rounded, dense;
  };

  // Holds and reads a tensor, of a DTensor this process's shard; notes how it is spread.
  bool read(size_t t, size_t what, py::object tensor, DLTensor& found, py::object& spec) {
    if (!tensor) return false;
    if (Py_TYPE(tensor.ptr()) != plain_ && is_sharded(tensor.ptr())) {
      spec = attribute(tensor.ptr(), table_.spec);
      tensor = attribute(tensor.ptr(), table_.shard);
      if (!tensor) return false;
      sharded = true;
    }
    if (!table_.read(tensor, found)) return false;
    held_[t * stride_ + what] = std::move(tensor);
    return found.data || element_count(found.sizes()) == 0;
  }

  bool is_sharded(PyObject* tensor) {
    if (!dtensor_.is_none() && PyObject_TypeCheck(tensor, reinterpret_cast<PyTypeObject*>(dtensor_.ptr())))
      return true;
    plain_ = Py_TYPE(tensor);
    return false;
  }

  // True for two DTensors of the same mesh and placements, or for two plain tensors (sharding.py).
  bool spread_alike(const py::object& spec, const py::object& other) const {
    if (spec.ptr() == other.ptr()) return true;
    if (!spec || !other) return false;
    const auto same = [&](const py::object& name) {
      return attribute(spec.ptr(), name).ptr() == attribute(other.ptr(), name).ptr();
    };
    return same(table_.mesh) && same(table_.placements);
  }

  // DLPack does not tell of a tensor that torch negates when it is read.
  bool is_neg(size_t t, size_t what) const {
    PyObject* negated = PyObject_CallOneArg(table_.is_neg.ptr(), held_[t * stride_ + what].ptr());
    const bool is = negated != Py_False;
    if (!negated) PyErr_Clear();
    Py_XDECREF(negated);
    return is;
  }

  // True where a place is as a backend needs it. Python says by name what is wrong, or mends it.
  bool look(size_t t, py::object state) {
    Look place{t, {}, {}, std::move(state), 0, false, false};
    if (!place.state || !look_at_param(place) || !look_at_grad(place)) return false;
    const Policy& policy = *policies_[policy_of_group_[group_of(t)]];
    DLTensor first{};
    first.ndim = -1;  // none yet
    std::vector<void*>& addresses = addresses_;
    addresses.clear();
    for (size_t k = 0; k < table_.names.size(); ++k)
      if (!look_at_state(place, policy, k, first, addresses)) return false;
    Slice slice{};
    slice.param = place.param.address();
    slice.size = place.size;
    return look_at_mask(place, slice) && sort(place, policy, dtype_of(first), slice);
  }

  bool look_at_param(Look& place) {
    const py::object param = py::reinterpret_borrow<py::object>(at(in_.params, place.t));
    if (!read(place.t, kParam, param, place.param, place.spec)) return false;
    const uint32_t dtype = dtype_of(place.param);
    place.rounded = dtype == kBFloat16 || dtype == kFloat16;
    if (!place.rounded && dtype != kFloat32) return false;
    const Shape sizes = place.param.sizes(), steps = place.param.steps();
    place.size = element_count(sizes);
    place.dense = is_contiguous(sizes, steps) || is_dense(sizes, steps);
    if (!place.dense && overlaps_itself(sizes, steps)) return false;
    if (is_neg(place.t, kParam)) place.dense = false;
    extents_.push_back(extent_of(place.param, place.t, true));
    return true;
  }

  bool look_at_grad(const Look& place) {
    DLTensor grad;
    py::object spec;
    const py::object fitted =
        in_.fitted.is_none() ? py::object() : entry(in_.fitted.ptr(), py::int_(place.t).ptr());
    const py::object given = fitted ? fitted : py::reinterpret_borrow<py::object>(at(in_.grads, place.t));
    if (!read(place.t, kGrad, given, grad, spec)) return false;
    if (!fitted && !spread_alike(spec, place.spec)) return false;
    if (dtype_of(grad) != dtype_of(place.param) || !like_param(place, grad)) return false;
    if (is_neg(place.t, kGrad)) return false;
    extents_.push_back(extent_of(grad, place.t, false));
    grad_ = grad.address();
    return true;
  }

  bool like_param(const Look& place, const DLTensor& tensor) const {
    const Shape sizes = place.param.sizes();
    return same_device(tensor, place.param) && same_sizes(tensor.sizes(), sizes) &&
           (!place.dense || same_order(sizes, tensor.steps(), place.param.steps()));
  }

  bool look_at_state(const Look& place, const Policy& policy, size_t k, DLTensor& first,
                     std::vector<void*>& addresses) {
    const bool like_param = table_.like_param[k], used = policy.used[k] && (!like_param || place.rounded);
    py::object tensor = entry(place.state.ptr(), table_.names[k].ptr());
    // What was cut off from a value says nothing of those that other roundings put in its place.
    if (!used) return !(like_param && tensor);
    DLTensor found;
    py::object spec;
    if (!read(place.t, kStates + k, std::move(tensor), found, spec)) return false;
    if (!spread_alike(spec, place.spec) || !this->like_param(place, found)) return false;
    if (first.ndim < 0) {
      first = found;
      if (dtype_of(first) != kFloat32 && dtype_of(first) != kBFloat16) return false;
    }
    if (dtype_of(found) != dtype_of(like_param ? place.param : first)) return false;
    extents_.push_back(extent_of(found, place.t, true));
    addresses.push_back(found.address());
    return true;
  }

  // A mask must have been packed for this shape and memory order, and what it prunes be 0 (mask.py).
  bool look_at_mask(const Look& place, Slice& slice) {
    const py::object packed = entry(place.state.ptr(), table_.mask.ptr());
    if (!packed) return true;
    if (!PyTuple_Check(packed.ptr()) || PyTuple_GET_SIZE(packed.ptr()) != 5) return false;
    const auto item = [&](size_t k) {
      return py::reinterpret_borrow<py::object>(PyTuple_GET_ITEM(packed.ptr(), k));
    };
    DLTensor words;
    py::object spec;
    if (!read(place.t, kMask, item(0), words, spec)) return false;
    if (dtype_of(words) != kInt32 || words.ndim != 1 || words.shape[0] != mask_words(place.size) ||
        !is_contiguous(words.sizes(), words.steps()) || !same_device(words, place.param))
      return false;
    if (!equals(item(1), place.param.sizes()) || !orders(item(2), place.param.steps())) return false;
    const std::string_view mode = text_of(item(3).ptr());
    if (mode != "zero" && mode != "freeze") return false;
    slice.mask_mode = mode == "zero" ? MaskMode::kZero : MaskMode::kFreeze;
    if (place.size) slice.mask = static_cast<const uint32_t*>(words.address());
    extents_.push_back(extent_of(words, place.t, false));
    return mode == "freeze" || is_cleared(place, item(4));
  }

  static bool equals(const py::object& numbers, const Shape& sizes) {
    if (!PyTuple_Check(numbers.ptr()) || PyTuple_GET_SIZE(numbers.ptr()) != sizes.dim) return false;
    for (int64_t d = 0; d < sizes.dim; ++d)
      if (PyLong_AsLongLong(PyTuple_GET_ITEM(numbers.ptr(), d)) != sizes.data[d]) return false;
    return true;
  }

  // True for the dimensions of these strides, the one that moves furthest first (reference.memory_order).
  static bool orders(const py::object& dims, const Shape& strides) {
    const std::vector<int64_t> order = memory_order(strides);
    return equals(dims, {order.data(), strides.dim});
  }

  // True while each state that is there lies where it lay when its pruned elements were made 0, and no one
  // has written it since.
  bool is_cleared(const Look& place, const py::object& seen) {
    const size_t noted = PyTuple_Check(seen.ptr()) ? PyTuple_GET_SIZE(seen.ptr()) : 0;
    size_t next = 0;
    for (size_t k = 0; k < table_.names.size(); ++k) {
      const py::object& held = held_[place.t * stride_ + kStates + k];
      if (!held) continue;
      if (next + 3 > noted) return false;
      const auto was =
          py::reinterpret_steal<py::object>(PyObject_CallNoArgs(PyTuple_GET_ITEM(seen.ptr(), next)));
      const py::object version = attribute(held.ptr(), table_.version);  // none of a tensor of inference mode
      DLTensor state;
      if (was.ptr() != held.ptr() || !table_.read(held, state) ||
          PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(seen.ptr(), next + 1)) !=
              reinterpret_cast<uintptr_t>(state.address()) ||
          PyLong_AsLongLong(PyTuple_GET_ITEM(seen.ptr(), next + 2)) !=
              (version ? PyLong_AsLongLong(version.ptr()) : 0))
        return false;
      next += 3;
    }
    return next == noted;
  }

  // Reads the step counter, and puts the place into the bucket of those that are stepped like it.
  bool sort(const Look& place, const Policy& policy, uint32_t state_dtype, Slice& slice) {
    DLTensor step;
    py::object spec;
    if (!read(place.t, kStep, entry(place.state.ptr(), table_.step.ptr()), step, spec)) return false;
    if (element_count(step.sizes()) != 1) return false;
    const bool can = std::count(numbering_.begin(), numbering_.end(), place.param.device_type) != 0;
    const bool by_device = can && (policy.device_numbers || step.device_type != kCpu);
    if (by_device ? dtype_of(step) != kFloat32 || !same_device(step, place.param)
                  : step.device_type != kCpu || !Counter::reads(step) || !is_count(Counter(step).read()))
      return false;
    extents_.push_back(extent_of(step, place.t, true));
    starts_[place.t] = first_filtered_step(place, policy);
    const size_t number = policy_of_group_[group_of(place.t)];
    Bucket& bucket = bucket_of(place, policy,
                               {number, dtype_of(place.param), state_dtype, by_device,
                                place.param.device_type, place.param.device_id, 0});
    const size_t row = by_device ? bucket.places.size() : row_of(place, Counter(step).read());
    slice.grad = grad_;
    bucket.add(place.t, row, slice, addresses_, step, by_device);
    return true;
  }

  double first_filtered_step(const Look& place, const Policy& policy) const {
    if (!policy.starts) return 0;
    const py::object start = entry(place.state.ptr(), table_.start.ptr());
    const double after = start ? PyFloat_AsDouble(start.ptr()) : 0;
    if (PyErr_Occurred()) PyErr_Clear();
    return after + 1;
  }

  size_t row_of(const Look& place, double count) {
    const std::tuple<size_t, double, double> key{group_of(place.t), count, starts_[place.t]};
    if (!keys.empty() && keys.back() == key) return keys.size() - 1;
    const auto [found, is_new] = row_of_key_.emplace(key, keys.size());
    if (is_new) keys.push_back(key);
    return found->second;
  }

  Bucket& bucket_of(const Look& place, const Policy& policy, Alike alike) {
    alike.backend = backend_of(place, policy);
    if (!buckets.empty() && buckets.back().alike == alike) return buckets.back();
    const auto [found, is_new] = bucket_of_alike_.emplace(alike, buckets.size());
    if (is_new) {
      buckets.emplace_back(alike, policy, backends[alike.backend] == "native");
      for (size_t k = 0; k < table_.names.size(); ++k)
        if (held_[place.t * stride_ + kStates + k]) buckets.back().arrays.push_back(k);
    }
    return buckets[found->second];
  }

  // Asked once for each kind of parameter.
  int32_t backend_of(const Look& place, const Policy& policy) {
    const Kind kind{&policy, place.param.device_type, place.dense};
    if (kinds_.empty() || kinds_.back().first != kind) {
      for (const auto& known : kinds_)
        if (known.first == kind) return known.second;
      const py::object param = py::reinterpret_borrow<py::object>(at(in_.params, place.t));
      const auto name = table_.choose(policy.backend, param, place.dense).cast<std::string>();
      auto found = std::find(backends.begin(), backends.end(), name);
      if (found == backends.end()) found = backends.insert(found, name);
      kinds_.emplace_back(kind, static_cast<int32_t>(found - backends.begin()));
    }
    return kinds_.back().second;
  }

  const Table& table_;
  Members in_;
  std::vector<const Policy*> policies_;
  std::vector<size_t> policy_of_group_;
  py::object dtensor_;
  PyTypeObject* plain_ = nullptr;  // the last type seen that is no DTensor's
  size_t stride_;
  std::vector<int32_t> numbering_;
  std::vector<py::object> held_;  // place by place: Held, then the arrays of the table
  std::vector<Extent> extents_;
  std::vector<double> starts_;
  std::vector<Scalars> scalars_;
  std::map<std::tuple<size_t, double, double>, size_t> row_of_key_;
  std::map<Alike, size_t> bucket_of_alike_;
  using Kind = std::tuple<const Policy*, int32_t, bool>;  // policy, device type, dense
  std::vector<std::pair<Kind, int32_t>> kinds_;
  // Of the place that is being looked at.
  const void* grad_ = nullptr;
  std::vector<void*> addresses_;
};

}  // namespace grokfused
