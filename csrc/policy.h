// What groups decide, and which backend then steps a parameter: pure functions of values, read once for each.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "tensors.h"
#include "work.h"

namespace grokfused {

// The fields are those of grokfused.step.policy.Policy.
struct Policy {
  std::string backend, grad_filter, decay;
  bool amsgrad;
  std::string state_rounding, param_rounding;
  int64_t seed;
  bool device_numbers;     // steps are numbered by the device, where it can
  bool starts;             // the filter's memory starts as the first gradient
  std::vector<bool> used;  // array of the table -> whether a step needs it

  explicit Policy(const pybind11::tuple& fields)
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

class PolicyTable {
 public:
  explicit PolicyTable(pybind11::object choose) : choose_(std::move(choose)) {}

  // Of a tuple, which is kept, so that no other one is found where it lies.
  std::shared_ptr<const Policy> read(const pybind11::tuple& fields) {
    const auto found = policies_.find(fields.ptr());
    if (found != policies_.end()) return found->second.second;
    if (policies_.size() == kMost) policies_.clear();
    auto policy = std::make_shared<const Policy>(fields);
    policies_.emplace(fields.ptr(), std::make_pair(fields, policy));
    return policy;
  }

  // The name of the backend that steps a parameter like this one. Each GPU is asked for by itself: there may
  // be code for some only.
  const std::string* backend(const std::string& asked, int32_t device, int32_t index, uint32_t dtype,
                             bool dense, const pybind11::object& param) {
    const Kind kind{asked, device, index, dtype, dense};
    const auto found = backends_.find(kind);
    if (found != backends_.end()) return found->second;
    const auto name = choose_(asked, param, dense).cast<std::string>();
    return backends_[kind] = &*names_.insert(name).first;
  }

 private:
  using Kind = std::tuple<std::string, int32_t, int32_t, uint32_t, bool>;
  static constexpr size_t kMost = 256;

  pybind11::object choose_;  // (name, parameter, dense) -> the backend that steps it
  std::map<PyObject*, std::pair<pybind11::tuple, std::shared_ptr<const Policy>>> policies_;
  std::map<Kind, const std::string*> backends_;
  std::set<std::string> names_;
};

}  // namespace grokfused
