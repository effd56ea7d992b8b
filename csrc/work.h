// What one call of a kernel works on, and how a kernel is found. It knows neither torch nor Python.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "step/element_step.h"
#include "step/fail.h"
#include "step/scalars.h"
#include "step/slice.h"

namespace grokfused {

// Checked by whoever made it, who also keeps the memory alive. The numbers (scalars, steps, grad_scale,
// found_inf) lie on the host, or on the device of the slices, where only the kernel can read them.
struct Work {
  std::vector<Slice> slices;
  std::vector<int64_t> rows;          // slice -> its row of scalars
  const Scalars* scalars = nullptr;   // the table
  float* steps = nullptr;             // slice -> its step counter, which becomes its row's step
  const float* grad_scale = nullptr;  // divides the gradients; null: by 1
  const float* found_inf = nullptr;   // where it is not 0, nothing changes; null: 0
  bool numbers_on_device = false;
  int32_t device_index = 0;
  uint32_t seed = 0;
};

inline MaskMode checked_mask_mode(int64_t mode) {
  if (mode != 0 && mode != 1) fail("mask_modes must be 0 (zero) or 1 (freeze), got ", mode);
  return static_cast<MaskMode>(mode);
}

using Kernel = void (*)(const Work&);
using ChooseKernel = Kernel (*)(const Policies&);

// Device ("cpu", "cuda") -> its kernels. Each backend's file enters its own when the library is loaded.
inline std::map<std::string, ChooseKernel>& kernel_choices() {
  static std::map<std::string, ChooseKernel> choices;
  return choices;
}

inline Kernel choose_kernel(const std::string& device, const Policies& policies) {
  const auto found = kernel_choices().find(device);
  if (found == kernel_choices().end()) fail("there is no kernel for ", device);
  return found->second(policies);
}

struct RegisterKernels {
  RegisterKernels(const char* device, ChooseKernel choose) { kernel_choices()[device] = choose; }
};

}  // namespace grokfused
