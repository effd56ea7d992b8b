// Parameters that one call of one kernel steps, and what they have in common. It knows nothing of where they
// were found.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "policy.h"
#include "tensors.h"
#include "work.h"

namespace grokfused {

// What the places of a bucket have in common.
struct Alike {
  size_t policy;  // a number that the walk gave it
  uint32_t param_dtype, state_dtype, window_dtype;
  bool numbers_on_device;
  int32_t device_type, device_index;
  const std::string* backend;  // of the PolicyTable: equal names are the same

  auto all() const {
    return std::tie(policy, param_dtype, state_dtype, window_dtype, numbers_on_device, device_type,
                    device_index, backend);
  }
  bool operator==(const Alike& other) const { return all() == other.all(); }
  bool operator<(const Alike& other) const { return all() < other.all(); }
};

class Bucket {
 public:
  // `most`: so many places at most will be added.
  Bucket(const Alike& all, const Policy& policy, size_t most) : alike(all) {
    work.seed = static_cast<uint32_t>(policy.seed);
    work.device_index = alike.device_index;
    work.numbers_on_device = alike.numbers_on_device;
    places.reserve(most);
    work.rows.reserve(most);
    work.slices.reserve(most);
    if (!alike.numbers_on_device) counters_.reserve(most);
    if (*alike.backend == "native")
      kernel_ = choose_kernel(alike.device_type == kCpu ? "cpu" : "cuda",
                              policy.names(alike.param_dtype, alike.state_dtype, alike.window_dtype));
  }

  Alike alike;
  std::vector<size_t> places;
  std::vector<size_t> arrays;  // those of the table that it uses, in order

  const std::vector<int64_t>& rows() const { return work.rows; }

  std::vector<int64_t> mask_modes() const {
    std::vector<int64_t> found;
    for (const Slice& slice : work.slices) found.push_back(static_cast<int64_t>(slice.mask_mode));
    return found;
  }

  void add(size_t place, size_t row, const Slice& slice, const DLTensor& step) {
    places.push_back(place);
    work.rows.push_back(static_cast<int64_t>(row));
    work.slices.push_back(slice);
    if (alike.numbers_on_device)
      work.slices.back().step = static_cast<float*>(step.address());
    else
      counters_.emplace_back(step);
  }

  // Where the device numbers the steps.
  std::vector<const float*> counters_there() const {
    std::vector<const float*> found;
    for (const Slice& slice : work.slices) found.push_back(slice.step);
    return found;
  }

  void run(const void* scalars, const void* grad_scale, const void* found_inf) {
    work.scalars = scalars;
    work.grad_scale = grad_scale;
    work.found_inf = static_cast<const float*>(found_inf);
    {
      const pybind11::gil_scoped_release others_run;
      kernel_(work);
    }
    for (size_t t = 0; t < counters_.size(); ++t) counters_[t].write(step_of(t));
  }

 private:
  float step_of(size_t t) const {
    if (alike.param_dtype == kFloat64) return static_cast<float>(work.row<double>(t).step);
    return work.row<float>(t).step;
  }

  Kernel kernel_{};
  std::vector<Counter> counters_;
  Work work;
};

}  // namespace grokfused
