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

constexpr int32_t kCpu = 1, kCuda = 2;  // device types of the standard

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
  // The first of the tensors that lie behind one another in this one.
  DLTensor plane() const {
    DLTensor first = *this;
    --first.ndim, ++first.shape, ++first.strides;
    return first;
  }
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

  // Learns from a tensor where its implementation is noted, and in that its storage and its dispatch keys:
  // torch tells all three. Of the keys, the negative view of the same tensor has one more; `conjugate` is
  // that of a conjugate view.
  void learn(const pybind11::object& sample, const pybind11::object& negative, uint64_t keys,
             uint64_t negative_keys, uint64_t conjugate) {
    const char* implementation = address_in(sample.attr("_cdata"));
    const char* negated = address_in(negative.attr("_cdata"));
    const char* storage = address_in(sample.attr("untyped_storage")().attr("_cdata"));
    tensor_type_ = Py_TYPE(sample.ptr());
    const auto find = [](Py_ssize_t begin, Py_ssize_t end, auto&& is_there) {
      for (Py_ssize_t at = begin; at + kWord <= end; at += kWord)
        if (is_there(at)) return at;
      return Py_ssize_t{0};
    };
    implementation_at_ = find(sizeof(PyObject), tensor_type_->tp_basicsize, [&](Py_ssize_t at) {
      return word_at(sample.ptr(), at) == implementation && word_at(negative.ptr(), at) == negated;
    });
    if (!implementation_at_) return;
    storage_at_ = find(0, kCacheLine, [&](Py_ssize_t at) { return word_at(implementation, at) == storage; });
    keys_at_ = find(0, kImplementation, [&](Py_ssize_t at) {
      return bits_at(implementation, at) == keys && bits_at(negated, at) == negative_keys;
    });
    unresolved_bits_ = keys_at_ ? (negative_keys & ~keys) | conjugate : 0;
  }

  bool knows_keys() const { return keys_at_ && unresolved_bits_; }

  // Whether torch negates or conjugates a tensor when it is read, of which DLPack does not tell.
  bool is_unresolved(PyObject* tensor) const {
    if (knows_keys() && is_tensor(tensor))
      return bits_at(word_at(tensor, implementation_at_), keys_at_) & unresolved_bits_;
    const auto says = [tensor](const char* question) {
      const auto is =
          pybind11::reinterpret_steal<pybind11::object>(PyObject_CallMethod(tensor, question, nullptr));
      if (!is) PyErr_Clear();
      return is.ptr() != Py_False;
    };
    return says("is_neg") || says("is_conj");
  }

  // False for what has no strides: a sparse tensor, for instance.
  bool operator()(pybind11::handle object, DLTensor& tensor) const {
    if (read_(object.ptr(), &tensor) == 0) return tensor.ndim == 0 || tensor.strides != nullptr;
    PyErr_Clear();
    return false;
  }

 private:
  static constexpr Py_ssize_t kCacheLine = 64, kWord = sizeof(void*);
  static constexpr Py_ssize_t kImplementation = 192;  // bytes of it that are looked at; it has more

  static const char* address_in(const pybind11::object& number) {
    return reinterpret_cast<const char*>(number.cast<uintptr_t>());
  }

  static const char* word_at(const void* object, Py_ssize_t at) {
    const char* word;
    std::memcpy(&word, static_cast<const char*>(object) + at, sizeof word);
    return word;
  }
  static uint64_t bits_at(const void* object, Py_ssize_t at) {
    uint64_t bits;
    std::memcpy(&bits, static_cast<const char*>(object) + at, sizeof bits);
    return bits;
  }

  bool is_tensor(PyObject* object) const {
    if (!object) return false;
    PyTypeObject* const type = Py_TYPE(object);
    return type == tensor_type_ || PyType_IsSubtype(type, tensor_type_);
  }

  int (*read_)(void*, DLTensor*) = nullptr;
  PyTypeObject* tensor_type_ = nullptr;
  Py_ssize_t implementation_at_ = 0, storage_at_ = 0, keys_at_ = 0;  // bytes from the beginning; 0: unknown
  uint64_t unresolved_bits_ = 0;
};

}  // namespace grokfused
