// How the elements of a tensor lie in memory. Plain numbers: it knows neither torch nor Python.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

namespace grokfused {

// Sizes or strides, borrowed from the tensor they describe.
struct Shape {
  const int64_t* data;
  int64_t dim;
};

inline std::string text(const Shape& values) {
  std::string joined = "[";
  for (int64_t d = 0; d < values.dim; ++d) joined += (d ? ", " : "") + std::to_string(values.data[d]);
  return joined + "]";
}

inline int64_t element_count(const Shape& sizes) {
  int64_t count = 1;
  for (int64_t d = 0; d < sizes.dim; ++d) count *= sizes.data[d];
  return count;
}

inline bool same_sizes(const Shape& a, const Shape& b) {
  return a.dim == b.dim && std::equal(a.data, a.data + a.dim, b.data);
}

// Element i in memory order is the same element in two tensors of these sizes. The stride of a
// dimension of size 1 says nothing, and neither does any stride of an empty tensor.
inline bool same_order(const Shape& sizes, const Shape& strides, const Shape& other_strides) {
  bool same = true;
  for (int64_t d = 0; d < sizes.dim; ++d) {
    if (sizes.data[d] == 0) return true;
    same = same && (sizes.data[d] == 1 || strides.data[d] == other_strides.data[d]);
  }
  return same;
}

inline bool is_contiguous(const Shape& sizes, const Shape& strides) {
  int64_t expected = 1;
  for (int64_t d = sizes.dim - 1; d >= 0; --d) {
    if (sizes.data[d] != 1 && strides.data[d] != expected) return false;
    expected *= sizes.data[d];
  }
  return true;
}

// The dimensions, the one that moves furthest through memory first.
inline std::vector<int64_t> memory_order(const Shape& strides) {
  std::vector<int64_t> dims(strides.dim);
  std::iota(dims.begin(), dims.end(), 0);
  std::stable_sort(dims.begin(), dims.end(),
                   [&](int64_t a, int64_t b) { return strides.data[a] > strides.data[b]; });
  return dims;
}

// The dimensions that move through memory as (stride, size), innermost first.
inline std::vector<std::pair<int64_t, int64_t>> significant_dims(const Shape& sizes, const Shape& strides) {
  std::vector<std::pair<int64_t, int64_t>> dims;
  for (int64_t d = 0; d < sizes.dim; ++d)
    if (sizes.data[d] != 1) dims.emplace_back(strides.data[d], sizes.data[d]);
  std::sort(dims.begin(), dims.end());
  return dims;
}

// True when two elements may share memory, as in an expanded tensor.
inline bool overlaps_itself(const Shape& sizes, const Shape& strides) {
  if (element_count(sizes) == 0) return false;
  int64_t reach = 1;  // elements from the first one to the end of the dimensions seen so far
  for (const auto& [stride, size] : significant_dims(sizes, strides)) {
    if (stride < reach) return true;
    reach += stride * (size - 1);
  }
  return false;
}

// True when the elements fill one stretch of memory, each once, in any order of dimensions.
inline bool is_dense(const Shape& sizes, const Shape& strides) {
  if (element_count(sizes) <= 1) return true;
  int64_t expected = 1;
  for (const auto& [stride, size] : significant_dims(sizes, strides)) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

}  // namespace grokfused
