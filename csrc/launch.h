// A step that is taken again and again on the same memory: the op checked its tensors once, this
// remembers what they were and compares. For small models the op's way (through torch's dispatcher, with
// a handle for every tensor) costs more than the arithmetic. It must not know what the kernel does.
#pragma once

#include <pybind11/stl.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "dlpack.h"
#include "work.h"

namespace grokfused {

// A tensor as it was.
class Known {
 public:
  explicit Known(const DLTensor& tensor)
      : tensor_(tensor),
        sizes_(tensor.shape, tensor.shape + tensor.ndim),
        strides_(tensor.strides, tensor.strides + tensor.ndim) {
    tensor_.shape = sizes_.data();
    tensor_.strides = strides_.data();
  }
  Known(Known&&) = default;  // moved, the vectors stay where they are; copied, they would not

  bool same_kind(const DLTensor& other) const {
    return tensor_.dtype_code == other.dtype_code && tensor_.dtype_bits == other.dtype_bits &&
           tensor_.device_type == other.device_type && tensor_.device_id == other.device_id &&
           same_sizes(tensor_.sizes(), other.sizes()) &&
           same_order(tensor_.sizes(), tensor_.steps(), other.steps());
  }
  bool same(const DLTensor& other) const { return address() == other.address() && same_kind(other); }
  // No kernel can read a tensor without: a fake one, a lazy zero, a wrapper of other tensors.
  bool has_memory() const { return size() == 0 || tensor_.data != nullptr; }
  int64_t size() const { return element_count(tensor_.sizes()); }
  void* address() const { return tensor_.address(); }
  int32_t device_index() const { return tensor_.device_id; }

 private:
  DLTensor tensor_;
  std::vector<int64_t> sizes_, strides_;
};

class Launch {
 public:
  // params, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, grad_emas, kahan_comps, masks; those not used are empty
  // lists.
  using Arrays = std::vector<pybind11::list>;

  Launch(TensorReader read, Kernel kernel, const Arrays& arrays, const std::vector<int64_t>& mask_modes,
         int64_t seed)
      : read_(read), kernel_(kernel) {
    if (arrays.size() != kArrays) fail("a launch takes ", kArrays, " lists of tensors, got ", arrays.size());
    for (const pybind11::list& array : arrays) known_.push_back(all_known(array));
    if (mask_modes.size() != known_[kMasks].size())
      fail("a launch of ", known_[kMasks].size(), " masks got ", mask_modes.size(), " modes");
    for (size_t t = 0; t < known_[0].size(); ++t) {
      const auto at = [&](size_t k) { return known_[k].empty() ? nullptr : known_[k].at(t).address(); };
      Slice slice{at(0), nullptr, at(1), at(2), at(3), at(4), at(5), nullptr, known_[0][t].size(), 0, 0, {}};
      if (!mask_modes.empty() && known_[kMasks].at(t).size() != 0) {
        slice.mask = static_cast<const uint32_t*>(at(kMasks));
        slice.mask_mode = checked_mask_mode(mask_modes[t]);
      }
      work_.slices.push_back(slice);
      work_.device_index = known_[0][t].device_index();
    }
    work_.seed = static_cast<uint32_t>(seed);
  }

  // True when all tensors are what they were, where they were, and each gradient is as its parameter
  // except for its address, which is remembered for the step that follows.
  bool knows(const Arrays& arrays, const pybind11::list& grads) {
    if (!repeatable_ || arrays.size() != kArrays || grads.size() != work_.slices.size()) return false;
    for (size_t k = 0; k < kArrays; ++k)
      if (!all_same(known_[k], arrays[k])) return false;
    size_t t = 0;
    for (const pybind11::handle object : grads) {
      DLTensor grad;
      if (!read_(object, grad) || !known_[0][t].same_kind(grad)) return false;
      if (grad.data == nullptr && work_.slices[t].size != 0) return false;
      work_.slices[t++].grad = grad.address();
    }
    return true;
  }

  // Addresses: `scalars` of the table's rows, `steps` of one float per slice, `grad_scale` and
  // `found_inf` of one float or 0; all on the host, or all on the device of the tensors.
  void step(uintptr_t scalars, std::vector<int64_t> rows, uintptr_t steps, uintptr_t grad_scale,
            uintptr_t found_inf, bool on_device) {
    if (rows.size() != work_.slices.size())
      fail("a launch of ", work_.slices.size(), " slices got ", rows.size(), " rows");
    work_.rows = std::move(rows);
    work_.scalars = reinterpret_cast<const Scalars*>(scalars);
    work_.steps = reinterpret_cast<float*>(steps);
    work_.grad_scale = reinterpret_cast<const float*>(grad_scale);
    work_.found_inf = reinterpret_cast<const float*>(found_inf);
    work_.numbers_on_device = on_device;
    kernel_(work_);
  }

 private:
  static constexpr size_t kArrays = 7, kMasks = 6;

  std::vector<Known> all_known(const pybind11::list& array) {
    std::vector<Known> found;
    for (const pybind11::handle object : array) {
      DLTensor tensor;
      if (!read_(object, tensor)) fail("a launch takes dense tensors");
      found.emplace_back(tensor);
      repeatable_ = repeatable_ && found.back().has_memory();
    }
    return found;
  }

  bool all_same(const std::vector<Known>& known, const pybind11::list& array) const {
    if (array.size() != known.size()) return false;
    size_t t = 0;
    for (const pybind11::handle object : array)
      if (DLTensor tensor; !read_(object, tensor) || !known[t++].same(tensor)) return false;
    return true;
  }

  TensorReader read_;
  Kernel kernel_;
  bool repeatable_ = true;
  std::vector<std::vector<Known>> known_;  // array -> its tensors
  Work work_;
};

}  // namespace grokfused
