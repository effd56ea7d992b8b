// What a Python tensor is, read without asking Python: through the table of functions that torch offers
// in `torch.Tensor.__dlpack_c_exchange_api__`. The structs are those of the DLPack standard, version 1
// (torch's own copy of its header may not be included in a build for the stable ABI).
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <cstring>

#include "layout.h"
#include "step/fail.h"

namespace grokfused {

struct DLTensor {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t dtype_code, dtype_bits;
  uint16_t dtype_lanes;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;

  Shape sizes() const { return {shape, ndim}; }
  Shape steps() const { return {strides, ndim}; }
  void* address() const { return static_cast<char*>(data) + byte_offset; }
};

struct DLPackExchange {
  uint32_t major, minor;
  const DLPackExchange* previous_version;
  void* managed_tensor_allocator;
  void* managed_tensor_from_py_object;
  void* managed_tensor_to_py_object;
  int (*tensor_from_py_object)(void* object, DLTensor* tensor);
  void* current_work_stream;
};

class TensorReader {
 public:
  explicit TensorReader(const pybind11::capsule& exchange) {
    const auto* offered =
        static_cast<const DLPackExchange*>(PyCapsule_GetPointer(exchange.ptr(), "dlpack_exchange_api"));
    if (!offered) throw pybind11::error_already_set();
    while (offered && offered->major != 1) offered = offered->previous_version;
    if (offered) read_ = offered->tensor_from_py_object;
    if (!read_) fail("torch offers no tensors of DLPack 1");
  }

  // Have the memory behind a tensor fetched, which a reading then finds in the cache: for a small model,
  // waiting for it costs more than the arithmetic. First what the tensor points to, then what that points to.
  // Hints: where torch's objects look otherwise than `learn` knows them, they do nothing.
  void prefetch(PyObject* tensor) const {
    if (!implementation_at_ || !is_tensor(tensor)) return;
    const char* implementation = word_at(tensor, implementation_at_);
    for (int line = 0; line < 4; ++line) __builtin_prefetch(implementation + line * kCacheLine);
  }
  void prefetch_storage(PyObject* tensor) const {
    if (!storage_at_ || !is_tensor(tensor)) return;
    const char* implementation = word_at(tensor, implementation_at_);
    if (!implementation) return;
    const char* storage = word_at(implementation, storage_at_);
    for (int line = 0; line < 2; ++line) __builtin_prefetch(storage + line * kCacheLine);
  }

  // Learns from a tensor where its implementation and its storage are noted: torch tells both addresses.
  void learn(const pybind11::object& sample) {
    const auto* implementation = reinterpret_cast<const char*>(sample.attr("_cdata").cast<uintptr_t>());
    const auto* storage =
        reinterpret_cast<const char*>(sample.attr("untyped_storage")().attr("_cdata").cast<uintptr_t>());
    tensor_type_ = Py_TYPE(sample.ptr());
    for (Py_ssize_t at = sizeof(PyObject); at + kWord <= tensor_type_->tp_basicsize; at += kWord)
      if (word_at(sample.ptr(), at) == implementation) implementation_at_ = at;
    for (Py_ssize_t at = 0; implementation_at_ && at < kCacheLine; at += kWord)
      if (word_at(implementation, at) == storage) storage_at_ = at;
  }

  // False for what has no strides: a sparse tensor, for instance.
  bool operator()(pybind11::handle object, DLTensor& tensor) const {
    if (read_(object.ptr(), &tensor) == 0) return tensor.ndim == 0 || tensor.strides != nullptr;
    PyErr_Clear();
    return false;
  }

 private:
  static constexpr Py_ssize_t kCacheLine = 64, kWord = sizeof(void*);

  static const char* word_at(const void* object, Py_ssize_t at) {
    const char* word;
    std::memcpy(&word, static_cast<const char*>(object) + at, sizeof word);
    return word;
  }

  bool is_tensor(PyObject* object) const {
    if (!object) return false;
    PyTypeObject* const type = Py_TYPE(object);
    return type == tensor_type_ || PyType_IsSubtype(type, tensor_type_);
  }

  int (*read_)(void*, DLTensor*) = nullptr;
  PyTypeObject* tensor_type_ = nullptr;
  Py_ssize_t implementation_at_ = 0, storage_at_ = 0;  // bytes from the beginning; 0: not known
};

}  // namespace grokfused
