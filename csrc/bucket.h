// Parameters that one call of one kernel steps, and what they have in common. It knows nothing of where they
// were found.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <string>
#include <tuple>
#include <vector>

#include "tensors.h"
#include "work.h"

namespace grokfused {

// What a group decides; the fields are those of grokfused.step.policy.Policy.
struct Policy {
  std::string backend, grad_filter, decay;
  bool amsgrad;
  std::string state_rounding, param_rounding;
  int64_t seed;
  bool device_numbers;     // steps are numbered by the device, where it can
  bool starts;             // the filter's memory starts as the first gradient
  std::vector<bool> used;  // array of the table -> whether a step needs it

  explicit Policy(const py::tuple& fields)
      : backend(fields[0].cast<std::string>()),
        grad_filter(fields[1].cast<std::string>()),
        decay(fields[2].cast<std::string>()),
        amsgrad(fields[3].cast<bool>()),
        state_rounding(fields[4].cast<std::string>()),
        param_rounding(fields[5].cast<std::string>()),
        seed(fields[6].cast<int64_t>()),
        device_numbers(fields[7].cast<bool>()),
        starts(fields[8].cast<bool>()),
        used(fields[9].cast<std::vector<bool>>()) {}

  Policies names(uint32_t param_dtype, uint32_t state_dtype) const {
    return {dtype_name(param_dtype),
            dtype_name(state_dtype),
            state_rounding,
            param_rounding,
            grad_filter,
            decay,
            amsgrad};
  }
};

// What the places of a bucket have in common.
struct Alike {
  size_t policy;
  uint32_t param_dtype, state_dtype;
  bool numbers_on_device;
  int32_t device_type, device_index;
  int32_t backend;  // a number that the walk gave it

  auto all() const {
    return std::tie(policy, param_dtype, state_dtype, numbers_on_device, device_type, device_index, backend);
  }
  bool operator==(const Alike& other) const { return all() == other.all(); }
  bool operator<(const Alike& other) const { return all() < other.all(); }
};

class Bucket {
 public:
  Bucket(const Alike& all, const Policy& policy, bool native) : alike(all) {
    work.seed = static_cast<uint32_t>(policy.seed);
    work.device_index = alike.device_index;
    work.numbers_on_device = alike.numbers_on_device;
    if (native)
      kernel_ = choose_kernel(alike.device_type == 1 ? "cpu" : "cuda",
                              policy.names(alike.param_dtype, alike.state_dtype));
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

  void run(const Scalars* scalars, uintptr_t grad_scale, uintptr_t found_inf) {
    work.scalars = scalars;
    work.grad_scale = reinterpret_cast<const float*>(grad_scale);
    work.found_inf = reinterpret_cast<const float*>(found_inf);
    {
      const pybind11::gil_scoped_release others_run;
      kernel_(work);
    }
    for (size_t t = 0; t < counters_.size(); ++t) counters_[t].write(scalars[work.rows[t]].step);
  }

 private:
  Kernel kernel_{};
  std::vector<Counter> counters_;
  Work work;
};

}  // namespace grokfused
