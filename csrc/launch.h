// A step that is taken again and again on the same memory: the op checked its tensors once, this remembers
// what they were and compares. For small models the op's way (through torch's dispatcher, with a handle for
// every tensor), and Python's way of looking states up, cost more than the arithmetic. It must not know what
// the kernel does.
#pragma once

#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "dlpack.h"
#include "known.h"
#include "work.h"

namespace grokfused {

// What the caller keeps of a bucket from step to step: four lists with an entry per parameter.
struct Members {
  pybind11::list states;  // the optimizer's dicts
  pybind11::list steps;   // their "step", the very object
  pybind11::list packed;  // their "mask", the very object, or None
  pybind11::list masks;   // the words of those; an empty list where there is no mask

  explicit Members(const pybind11::tuple& lists)
      : states(lists[0]), steps(lists[1]), packed(lists[2]), masks(lists[3]) {}
};

class Launch {
 public:
  // `names`: of the entries of a state that are read, in the order of Slice; None for those that are not.
  // `sharded`: parameters and states are DTensors, whose shards are stepped.
  Launch(TensorReader read, Kernel kernel, const pybind11::list& params, const Members& members,
         std::vector<pybind11::object> names, const std::vector<int64_t>& mask_modes, bool sharded,
         int64_t seed)
      : read_(read), kernel_(kernel), names_(std::move(names)), sharded_(sharded) {
    if (names_.size() != kStates) fail("a launch takes ", kStates, " names of states, got ", names_.size());
    if (mask_modes.size() != members.masks.size())
      fail("a launch of ", members.masks.size(), " masks got ", mask_modes.size(), " modes");
    for (size_t t = 0; t < params.size(); ++t) {
      add(at(params, t), at(members.states, t));
      if (!mask_modes.empty()) add_mask(at(members.masks, t), mask_modes[t]);
    }
    work_.seed = static_cast<uint32_t>(seed);
  }

  // True when all tensors are what they were, where they were, and each gradient is as its parameter
  // except for its address, which is remembered for the step that follows.
  bool knows(const pybind11::list& params, const pybind11::list& grads, const Members& members) {
    const size_t count = work_.slices.size();
    for (const pybind11::list* list : {&params, &grads, &members.states, &members.steps, &members.packed})
      if (list->size() != count) return false;
    if (!repeatable_ || members.masks.size() != masks_.size()) return false;
    // Array by array: that is how they lie in memory, as far as they lie in any order.
    for (size_t t = 0; t < count; ++t)
      if (!same(at(params, t), arrays_[0][t], t)) return false;
    for (size_t k = 0; k < kStates; ++k)
      for (size_t t = 0; t < arrays_[k + 1].size(); ++t) {
        PyObject* found = entry(at(members.states, t), names_[k]);
        if (!found || !same(found, arrays_[k + 1][t], t)) return false;
      }
    for (size_t t = 0; t < count; ++t) {
      const PyObject* mask = entry(at(members.states, t), mask_);
      if (entry(at(members.states, t), step_) != at(members.steps, t).ptr()) return false;
      if ((mask ? mask : Py_None) != at(members.packed, t).ptr()) return false;
    }
    for (size_t t = 0; t < masks_.size(); ++t)
      if (!same_mask(at(members.masks, t), t)) return false;
    for (size_t t = 0; t < count; ++t)
      if (!takes_grad(at(grads, t), t)) return false;
    return true;
  }

  // The first step counter, if no one has written any since the last step; else, or before that, nothing.
  std::optional<float> count(uintptr_t steps) const {
    const auto* counts = reinterpret_cast<const float*>(steps);
    if (counted_.empty() || !std::equal(counted_.begin(), counted_.end(), counts)) return std::nullopt;
    return counts[0];
  }

  // Which row of scalars each slice has; taken for the same while it is the same list.
  void take_rows(const pybind11::list& rows) {
    if (rows.is(rows_)) return;
    work_.rows = rows.cast<std::vector<int64_t>>();
    rows_ = rows;
    if (work_.rows.size() != work_.slices.size())
      fail("a launch of ", work_.slices.size(), " slices got ", work_.rows.size(), " rows");
  }

  // The rows that the host has derived, rounded to float32 as scalar_table (scalars.py) does it for the op.
  uintptr_t take_scalars(const pybind11::list& table) {
    scalars_.resize(table.size());
    float* field = &scalars_.data()->step;
    for (const pybind11::handle row : table) {
      const auto numbers = row.cast<pybind11::tuple>();
      if (numbers.size() != kScalarCount) fail("a row of scalars is ", kScalarCount, " numbers long");
      for (const pybind11::handle number : numbers) *field++ = static_cast<float>(number.cast<double>());
    }
    return reinterpret_cast<uintptr_t>(scalars_.data());
  }

  // Addresses: `scalars` of the table's rows, `steps` of one float per slice, `grad_scale` and
  // `found_inf` of one float or 0; all on the host, or all on the device of the tensors.
  void step(uintptr_t scalars, uintptr_t steps, uintptr_t grad_scale, uintptr_t found_inf, bool on_device) {
    work_.scalars = reinterpret_cast<const Scalars*>(scalars);
    work_.steps = reinterpret_cast<float*>(steps);
    work_.grad_scale = reinterpret_cast<const float*>(grad_scale);
    work_.found_inf = reinterpret_cast<const float*>(found_inf);
    work_.numbers_on_device = on_device;
    kernel_(work_);
    if (!on_device) counted_.assign(work_.steps, work_.steps + work_.slices.size());
  }

 private:
  static constexpr size_t kStates = 5;

  // As the names in a dict are, so that they are told by their address.
  static pybind11::object interned(const char* text) {
    return pybind11::reinterpret_steal<pybind11::object>(PyUnicode_InternFromString(text));
  }

  static pybind11::handle at(const pybind11::list& list, size_t t) { return PyList_GET_ITEM(list.ptr(), t); }

  // Borrowed; null where the state has none.
  static PyObject* entry(pybind11::handle state, const pybind11::object& name) {
    PyObject* found = PyDict_GetItemWithError(state.ptr(), name.ptr());
    if (!found) PyErr_Clear();
    return found;
  }

  bool read(pybind11::handle object, DLTensor& tensor) const {
    if (!sharded_) return read_(object, tensor);
    const auto shard =
        pybind11::reinterpret_steal<pybind11::object>(PyObject_GetAttr(object.ptr(), shard_.ptr()));
    if (shard) return read_(shard, tensor);  // the DTensor keeps it
    PyErr_Clear();
    return read_(object, tensor);
  }

  void add(pybind11::handle param, pybind11::handle state) {
    DLTensor tensor;
    if (!read(param, tensor)) fail("a launch takes dense tensors");
    layouts_.emplace_back(tensor);
    const int64_t size = layouts_.back().size();
    const auto remember = [&](size_t k) {
      // No kernel can read a tensor without memory: a fake one, a lazy zero, a wrapper of other tensors.
      arrays_[k].emplace_back(tensor);
      repeatable_ = repeatable_ && (size == 0 || tensor.data != nullptr);
      return tensor.address();
    };
    Slice slice{remember(0), nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, size, 0, 0, {}};
    void** const addresses[kStates] = {&slice.exp_avg, &slice.exp_avg_sq, &slice.max_exp_avg_sq,
                                       &slice.grad_ema, &slice.kahan_comp};
    work_.device_index = tensor.device_id;
    for (size_t k = 0; k < kStates; ++k) {
      if (names_[k].is_none()) continue;
      PyObject* found = entry(state, names_[k]);
      repeatable_ = repeatable_ && found && read(found, tensor);  // no dict: some other mapping
      if (repeatable_) *addresses[k] = remember(k + 1);
    }
    work_.slices.push_back(slice);
  }

  void add_mask(pybind11::handle words, int64_t mode) {
    DLTensor tensor;
    if (!read_(words, tensor)) fail("a launch takes masks that are dense tensors");
    masks_.emplace_back(tensor, tensor);
    if (masks_.back().second.size() == 0) return;
    work_.slices.back().mask = static_cast<const uint32_t*>(tensor.address());
    work_.slices.back().mask_mode = checked_mask_mode(mode);
  }

  bool same(pybind11::handle object, const Known& known, size_t t) const {
    DLTensor tensor;
    return read(object, tensor) && known.same(tensor) && layouts_[t].same(tensor);
  }

  bool same_mask(pybind11::handle words, size_t t) const {
    DLTensor tensor;
    return read_(words, tensor) && masks_[t].first.same(tensor) && masks_[t].second.same(tensor);
  }

  bool takes_grad(pybind11::handle grad, size_t t) {
    DLTensor tensor;
    if (!read_(grad, tensor) || !arrays_[0][t].same_kind(tensor) || !layouts_[t].same(tensor)) return false;
    Slice& slice = work_.slices[t];
    slice.grad = tensor.address();
    return tensor.data != nullptr || slice.size == 0;
  }

  TensorReader read_;
  Kernel kernel_;
  std::vector<pybind11::object> names_;
  bool sharded_;
  bool repeatable_ = true;
  pybind11::object step_ = interned("step"), mask_ = interned("mask"), shard_ = interned("_local_tensor");
  std::vector<Layout> layouts_;             // parameter -> its shape and order, and that of all its arrays
  std::vector<Known> arrays_[1 + kStates];  // of the parameters, then those of the states that are used
  std::vector<std::pair<Known, Layout>> masks_;
  std::vector<Scalars> scalars_;
  std::vector<float> counted_;  // the step counters, as a step has left them
  pybind11::object rows_;
  Work work_;
};

}  // namespace grokfused
