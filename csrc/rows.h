// Rows of scalars for tensors whose steps the device counts, and how it is asked for them: derived there, by
// the formulas of step/scalars.h. It knows neither torch nor Python.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "step/fail.h"
#include "step/scalars.h"

namespace grokfused {

// A group's hyperparameters as the host knows them; `rates`: where the device has lr, beta1 and beta2
// instead, in float64 or else in float32, or null.
struct DeviceGroup {
  Hyperparameters numbers;
  Gate gate;
  const void* rates[3];
  bool wide[3];

  GROK_HD double rate(int k, double number) const {
    if (!rates[k]) return number;
    return wide[k] ? *static_cast<const double*>(rates[k]) : *static_cast<const float*>(rates[k]);
  }
};

// The step after `counter`; `start`: the first one that the filter's memory saw.
GROK_HD ScalarsOf<double> row_after(const DeviceGroup& group, float counter, float start) {
  Hyperparameters of = group.numbers;
  const double step = double{counter} + 1.0;
  of.lr = group.rate(0, of.lr);
  of.beta1 = group.rate(1, of.beta1);
  of.beta2 = group.rate(2, of.beta2);
  return derive(of, group.gate, step, double{start});
}

template <class Real>
GROK_HD void put_row(const ScalarsOf<double>& row, void* rows, int64_t tensor) {
  const auto* from = reinterpret_cast<const double*>(&row);
  Real* to = static_cast<Real*>(rows) + tensor * kScalarCount;
  for (int64_t k = 0; k < kScalarCount; ++k) to[k] = static_cast<Real>(from[k]);
}

// Counters, rates and rows lie on the device; whoever made it keeps them alive.
struct Rows {
  std::vector<DeviceGroup> groups;
  std::vector<int32_t> group_of;  // tensor -> its group
  std::vector<const float*> counters;
  std::vector<float> starts;
  void* rows = nullptr;  // [tensors] of float64, or else of float32
  bool wide = false;
  int32_t device_index = 0;
};

// Device ("cpu", "cuda") -> what derives rows there. Each backend's file enters its own.
inline std::map<std::string, void (*)(const Rows&)>& row_makers() {
  static std::map<std::string, void (*)(const Rows&)> makers;
  return makers;
}

struct RegisterRows {
  RegisterRows(const char* device, void (*make)(const Rows&)) { row_makers()[device] = make; }
};

}  // namespace grokfused
