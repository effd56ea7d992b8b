// Rows of scalars for tensors whose steps the device counts, what divides their gradients where their norm is
// clipped, and how the device is asked for both: derived there, by the formulas of step/scalars.h. It knows
// neither torch nor Python.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "step/fail.h"
#include "step/scalars.h"

namespace grokfused {

// A number that the device has, in float64 or else in float32, or none.
struct DeviceNumber {
  const void* address;
  bool wide;

  GROK_HD double or_else(double number) const {
    if (!address) return number;
    return wide ? *static_cast<const double*>(address) : *static_cast<const float*>(address);
  }
};

// A group's hyperparameters as the host knows them; `rates`: lr, beta1 and beta2 where the device has them
// instead.
struct DeviceGroup {
  Hyperparameters numbers;
  Gate gate;
  DeviceNumber rates[3];
};

// How gradients are clipped; `divisor`: where what divides them is put, in the numbers of the rows, or null.
struct Clipping {
  DeviceNumber norm, loss_scale;
  double max_norm;
  void* divisor;
};

// The step after `counter`; `start`: the first one that the filter's memory saw.
GROK_HD ScalarsOf<double> row_after(const DeviceGroup& group, float counter, float start) {
  Hyperparameters of = group.numbers;
  const double step = double{counter} + 1.0;
  of.lr = group.rates[0].or_else(of.lr);
  of.beta1 = group.rates[1].or_else(of.beta1);
  of.beta2 = group.rates[2].or_else(of.beta2);
  return derive(of, group.gate, step, double{start});
}

template <class Real>
GROK_HD void put_row(const ScalarsOf<double>& row, void* rows, int64_t tensor) {
  const auto* from = reinterpret_cast<const double*>(&row);
  Real* to = static_cast<Real*>(rows) + tensor * kScalarCount;
  for (int64_t k = 0; k < kScalarCount; ++k) to[k] = static_cast<Real>(from[k]);
}

// As torch does it in the numbers of the norm, before they are rounded.
template <class Real>
GROK_HD double divisor_in(const Clipping& of) {
  return clipping_divisor(static_cast<Real>(of.norm.or_else(0.0)),
                          static_cast<Real>(of.loss_scale.or_else(1.0)), static_cast<Real>(of.max_norm));
}

template <class Real>
GROK_HD void put_divisor(const Clipping& of) {
  if (!of.divisor) return;
  const double divisor = of.norm.wide ? divisor_in<double>(of) : divisor_in<float>(of);
  *static_cast<Real*>(of.divisor) = static_cast<Real>(divisor);
}

// Counters, rates, norms and rows lie on the device; whoever made it keeps them alive.
struct Rows {
  std::vector<DeviceGroup> groups;
  std::vector<int32_t> group_of;  // tensor -> its group
  std::vector<const float*> counters;
  std::vector<float> starts;
  void* rows = nullptr;  // [tensors] of float64, or else of float32
  bool wide = false;
  Clipping clipping{};
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
