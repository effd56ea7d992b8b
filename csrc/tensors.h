// What a walk reads of one tensor: its numbers, and the counter in one. It knows no optimizer.
#pragma once

#include <cstdint>
#include <string_view>

#include "dlpack.h"
#include "layout.h"
#include "overlap.h"
#include "python.h"

namespace grokfused {

// A dtype of DLPack in one number.
constexpr uint32_t dtype_code(uint8_t kind, uint8_t bits) { return uint32_t{kind} << 8 | bits; }
constexpr uint32_t kInt32 = dtype_code(0, 32), kInt64 = dtype_code(0, 64);
constexpr uint32_t kFloat32 = dtype_code(2, 32), kFloat64 = dtype_code(2, 64);
constexpr uint32_t kFloat16 = dtype_code(2, 16), kBFloat16 = dtype_code(4, 16);
constexpr uint32_t kUInt8 = dtype_code(1, 8);
constexpr uint32_t kComplex64 = dtype_code(5, 64), kComplex128 = dtype_code(5, 128);

inline uint32_t dtype_of(const DLTensor& tensor) { return dtype_code(tensor.dtype_code, tensor.dtype_bits); }

inline bool is_complex(uint32_t dtype) { return dtype == kComplex64 || dtype == kComplex128; }

// As which a complex number is stepped: as two of them.
inline uint32_t real_of(uint32_t dtype) {
  if (dtype == kComplex64) return kFloat32;
  return dtype == kComplex128 ? kFloat64 : dtype;
}

// The name of a dtype that a kernel may be asked for, of states alone of 8 bits; empty for another one.
inline std::string_view dtype_name(uint32_t dtype) {
  if (dtype == kFloat32) return "float32";
  if (dtype == kBFloat16) return "bfloat16";
  if (dtype == kFloat16) return "float16";
  if (dtype == kFloat64) return "float64";
  if (dtype == kUInt8) return "uint8";
  return {};
}

inline bool same_device(const DLTensor& a, const DLTensor& b) {
  return a.device_type == b.device_type && a.device_id == b.device_id;
}

// From the first element's first byte to the last one's last.
inline Extent extent_of(const DLTensor& tensor, size_t place, bool written) {
  const auto first = reinterpret_cast<uintptr_t>(tensor.address());
  int64_t last = 0;
  for (int32_t d = 0; d < tensor.ndim; ++d) {
    if (tensor.shape[d] == 0) return {first, first, static_cast<uint32_t>(place), written};
    last += (tensor.shape[d] - 1) * tensor.strides[d];
  }
  return {first, first + (last + 1) * tensor.dtype_bits / 8, static_cast<uint32_t>(place), written};
}

// A step counter of the host, whatever number it is stored as.
class Counter {
 public:
  explicit Counter(const DLTensor& tensor) : at_(tensor.address()), dtype_(dtype_of(tensor)) {}

  static bool reads(const DLTensor& tensor) {
    const uint32_t dtype = dtype_of(tensor);
    return dtype == kFloat32 || dtype == kFloat64 || dtype == kInt64 || dtype == kInt32;
  }

  double read() const {
    if (dtype_ == kFloat32) return *static_cast<const float*>(at_);
    if (dtype_ == kFloat64) return *static_cast<const double*>(at_);
    if (dtype_ == kInt64) return static_cast<double>(*static_cast<const int64_t*>(at_));
    return *static_cast<const int32_t*>(at_);
  }

  void write(float count) const {
    if (dtype_ == kFloat32) *static_cast<float*>(at_) = count;
    if (dtype_ == kFloat64) *static_cast<double*>(at_) = count;
    if (dtype_ == kInt64) *static_cast<int64_t*>(at_) = static_cast<int64_t>(count);
    if (dtype_ == kInt32) *static_cast<int32_t*>(at_) = static_cast<int32_t>(count);
  }

 private:
  void* at_;
  uint32_t dtype_;
};

// What a float32 counter can have counted; NaN would make every parameter NaN.
inline bool is_count(double step) {
  return step >= 0 && step <= 16777216 && step == static_cast<double>(static_cast<int64_t>(step));
}

}  // namespace grokfused
