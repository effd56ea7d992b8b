// How the walk reads Python's objects: borrowed where the owner is held, interned names, no exception that
// stays. It knows neither torch nor what a step is.
#pragma once

#include <pybind11/pybind11.h>

#include <string_view>

namespace grokfused {

namespace py = pybind11;

// As the names in a dict are, so that they are told by their address.
inline py::object interned(const char* text) {
  return py::reinterpret_steal<py::object>(PyUnicode_InternFromString(text));
}

inline PyObject* at(const py::list& list, size_t i) { return PyList_GET_ITEM(list.ptr(), i); }

inline std::string_view text_of(PyObject* object) {
  Py_ssize_t size = 0;
  const char* text = object && PyUnicode_Check(object) ? PyUnicode_AsUTF8AndSize(object, &size) : nullptr;
  if (!text) PyErr_Clear();
  return text ? std::string_view(text, size) : std::string_view();
}

// Null where there is none; whatever else goes wrong counts as none too.
inline py::object attribute(PyObject* object, const py::object& name) {
  PyObject* found = PyObject_GetAttr(object, name.ptr());
  if (!found) PyErr_Clear();
  return py::reinterpret_steal<py::object>(found);
}

inline py::object entry(PyObject* mapping, PyObject* key) {
  if (PyDict_Check(mapping)) {
    PyObject* found = PyDict_GetItemWithError(mapping, key);
    if (!found) PyErr_Clear();
    return py::reinterpret_borrow<py::object>(found);
  }
  PyObject* found = mapping == Py_None ? nullptr : PyObject_GetItem(mapping, key);
  if (!found) PyErr_Clear();
  return py::reinterpret_steal<py::object>(found);
}

// The entries of a dict by their keys, which are Tensors: hashing one runs Python code. Most are asked for
// in the order of the dict, so the next entry is looked at first.
class Entries {
 public:
  explicit Entries(const py::object& mapping) : mapping_(mapping) {}

  py::object operator()(PyObject* key) {
    PyObject *next_key = nullptr, *value = nullptr;
    Py_ssize_t next = position_;
    if (PyDict_Check(mapping_.ptr()) && PyDict_Next(mapping_.ptr(), &next, &next_key, &value) &&
        next_key == key) {
      position_ = next;
      return py::reinterpret_borrow<py::object>(value);
    }
    return entry(mapping_.ptr(), key);
  }

 private:
  py::object mapping_;
  Py_ssize_t position_ = 0;
};

}  // namespace grokfused
