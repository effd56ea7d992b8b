// What the tensors of a step were when they were checked, to tell in a later step whether they still are
// that. It must not know who asks, or what is done with them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "dlpack.h"
#include "layout.h"

namespace grokfused {

// The shape of a tensor and the order of its elements in memory. Those of a parameter and of all that belongs
// to it are one: the op has checked that.
class Layout {
 public:
  explicit Layout(const DLTensor& tensor) : dim_(tensor.ndim) {
    numbers_.assign(tensor.shape, tensor.shape + dim_);
    numbers_.insert(numbers_.end(), tensor.strides, tensor.strides + dim_);
  }

  bool same(const DLTensor& other) const {
    return same_sizes(sizes(), other.sizes()) &&
           (std::equal(strides().data, strides().data + dim_, other.strides) ||
            same_order(sizes(), strides(), other.steps()));
  }
  int64_t size() const { return element_count(sizes()); }

 private:
  Shape sizes() const { return {numbers_.data(), dim_}; }
  Shape strides() const { return {numbers_.data() + dim_, dim_}; }

  int32_t dim_;
  std::vector<int64_t> numbers_;  // sizes, then strides
};

// Where a tensor lay, and what it held there.
class Known {
 public:
  explicit Known(const DLTensor& tensor)
      : address_(tensor.address()),
        device_type_(tensor.device_type),
        device_id_(tensor.device_id),
        dtype_code_(tensor.dtype_code),
        dtype_bits_(tensor.dtype_bits) {}

  bool same_kind(const DLTensor& other) const {
    return dtype_code_ == other.dtype_code && dtype_bits_ == other.dtype_bits &&
           device_type_ == other.device_type && device_id_ == other.device_id;
  }
  bool same(const DLTensor& other) const { return address_ == other.address() && same_kind(other); }
  void* address() const { return address_; }
  int32_t device_index() const { return device_id_; }

 private:
  void* address_;
  int32_t device_type_, device_id_;
  uint8_t dtype_code_, dtype_bits_;
};

}  // namespace grokfused
