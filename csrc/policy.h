// What groups decide, and which backend then steps a parameter: pure functions of values, read once for each.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
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

inline Gate gate_of(const pybind11::handle& fields) {
  const auto [window, full_only, summed, after, until] = fields.cast<std::array<double, 5>>();
  return {window, full_only, summed, after, until};
}

// The fields are those of grokfused.step.policy.Policy.
struct Policy {
  std::string backend, grad_filter, decay;
  bool amsgrad;
  std::string state_rounding, param_rounding;
  int64_t seed;
  bool device_numbers;     // steps are numbered by the device, where it can
  pybind11::object start;  // the key of the note when the filter's memory was made; None: it says nothing
  Gate gate;               // when the filter amplifies
  int32_t window_size;     // 0 without a window
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
        start(pybind11::len(fields[8]) ? pybind11::object(fields[8]) : pybind11::none()),
        gate(gate_of(fields[9])),
        window_size(fields[10].cast<int32_t>()),
        used(fields[11].cast<std::vector<bool>>()) {}

  Policies names(uint32_t param_dtype, uint32_t state_dtype, uint32_t window_dtype) const {
    return {dtype_name(param_dtype),
            dtype_name(state_dtype),
            dtype_name(window_dtype),
            state_rounding,
            param_rounding,
            grad_filter,
            decay,
            amsgrad,
            window_size};
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
    // Mostly it is what was asked for last, and comparing is quicker than searching.
    if (last_ && last_->first == std::tie(asked, device, index, dtype, dense)) return last_->second;
    const Kind kind{asked, device, index, dtype, dense};
    auto found = backends_.find(kind);
    if (found == backends_.end()) {
      const auto name = choose_(asked, param, dense).cast<std::string>();
      found = backends_.emplace(kind, &*names_.insert(name).first).first;
    }
    last_ = &*found;
    return found->second;
  }

 private:
  using Kind = std::tuple<std::string, int32_t, int32_t, uint32_t, bool>;
  static constexpr size_t kMost = 256;

  pybind11::object choose_;  // (name, parameter, dense) -> the backend that steps it
  std::map<PyObject*, std::pair<pybind11::tuple, std::shared_ptr<const Policy>>> policies_;
  std::map<Kind, const std::string*> backends_;
  const std::pair<const Kind, const std::string*>* last_ = nullptr;  // of these, the one asked for last
  std::set<std::string> names_;
};

}  // namespace grokfused
