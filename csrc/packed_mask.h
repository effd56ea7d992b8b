// Whether a mask in a state (grokfused.step.mask.PackedMask) still fits its parameter.
#pragma once

#include <string_view>
#include <vector>

#include "place.h"
#include "step/mask.h"

namespace grokfused {

class PackedMask {
 public:
  explicit PackedMask(const py::object& packed) : packed_(packed) {}

  bool is_one() const { return PyTuple_Check(packed_.ptr()) && PyTuple_GET_SIZE(packed_.ptr()) == 5; }
  py::object words() const { return py::reinterpret_borrow<py::object>(item(0)); }
  bool zeroes() const { return text_of(item(3)) == "zero"; }
  bool freezes() const { return text_of(item(3)) == "freeze"; }

  // Packed for this shape, and for the order in which the parameter lies.
  bool fits(const Param& param, const DLTensor& words) const {
    const Shape sizes = param.tensor.sizes();
    const std::vector<int64_t> order = memory_order(param.tensor.steps());
    return dtype_of(words) == kInt32 && words.ndim == 1 && words.shape[0] == mask_words(param.size) &&
           is_contiguous(words.sizes(), words.steps()) && same_device(words, param.tensor) &&
           equals(item(1), sizes) && equals(item(2), {order.data(), sizes.dim});
  }

  // True while each state lies where it lay when its pruned elements were made 0, and no one has written it
  // since: the note says for each the tensor (weakly), its address and its version.
  bool has_cleared(const Place& place, const Table& table, const PlaceReader& reader) const {
    PyObject* note = item(4);
    const size_t noted = PyTuple_Check(note) ? PyTuple_GET_SIZE(note) : 0;
    size_t next = 0;
    for (size_t k = 0; k < table.arrays.size(); ++k) {
      const py::object& held = place.states[k];
      if (!held || table.arrays[k].planes == kOnePerBlock) continue;
      if (next + 3 > noted) return false;
      const auto was = py::reinterpret_steal<py::object>(PyObject_CallNoArgs(PyTuple_GET_ITEM(note, next)));
      DLTensor state;
      if (was.ptr() != held.ptr() || !table.read(held, state)) return false;
      const auto address = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(note, next + 1));
      const auto version = PyLong_AsLongLong(PyTuple_GET_ITEM(note, next + 2));
      if (address != reinterpret_cast<uintptr_t>(state.address()) || version != reader.version_of(held))
        return false;
      next += 3;
    }
    return next == noted;
  }

 private:
  PyObject* item(size_t k) const { return PyTuple_GET_ITEM(packed_.ptr(), k); }

  static bool equals(PyObject* numbers, const Shape& sizes) {
    if (!PyTuple_Check(numbers) || PyTuple_GET_SIZE(numbers) != sizes.dim) return false;
    for (int64_t d = 0; d < sizes.dim; ++d)
      if (PyLong_AsLongLong(PyTuple_GET_ITEM(numbers, d)) != sizes.data[d]) return false;
    return true;
  }

  py::object packed_;
};

}  // namespace grokfused
