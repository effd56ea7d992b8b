// What a Python tensor is, read without asking Python: through the table of functions that torch offers
// in `torch.Tensor.__dlpack_c_exchange_api__`. The structs are those of the DLPack standard, version 1
// (torch's own copy of its header may not be included in a build for the stable ABI).
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

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

  // False for what has no strides: a sparse tensor, for instance.
  bool operator()(pybind11::handle object, DLTensor& tensor) const {
    if (read_(object.ptr(), &tensor) == 0) return tensor.ndim == 0 || tensor.strides != nullptr;
    PyErr_Clear();
    return false;
  }

 private:
  int (*read_)(void*, DLTensor*) = nullptr;
};

}  // namespace grokfused
