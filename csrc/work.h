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

// Checked by whoever made it, who also keeps the memory alive. The numbers (scalars, step counters,
// grad_scale, found_inf) lie on the host, or on the device of the slices, where only the kernel can read
// them. On the host, whoever made it has looked at found_inf, and advances the step counters.
struct Work {
  std::vector<Slice> slices;
  std::vector<int64_t> rows;      // slice -> its row of scalars
  const void* scalars = nullptr;  // the table: rows of ScalarsOf the real numbers that the kernel computes in
  const void* grad_scale = nullptr;  // one of these, which divides the gradients; null: by 1
  const float* found_inf = nullptr;  // on the device: where it is not 0, nothing changes; null: 0
  bool numbers_on_device = false;
  int32_t device_index = 0;
  uint32_t seed = 0;

  template <class Real>
  const ScalarsOf<Real>& row(size_t slice) const {
    return static_cast<const ScalarsOf<Real>*>(scalars)[rows[slice]];
  }
  // Of the host: with the loss scale in it.
  template <class Real>
  ScalarsOf<Real> unscaled_row(size_t slice) const {
    return unscaled(row<Real>(slice), static_cast<const Real*>(grad_scale));
  }
};

// What steps any work of one kind. A value: two of them are equal where they do the same.
struct Kernel {
  void (*run)(const Work&, const Choices&);
  Choices choices;
  std::vector<StateRow> states;  // the arrays that it reads and writes, in the order of Slice::states

  void operator()(const Work& work) const { run(work, choices); }
};

template <class... Rows>
std::vector<StateRow> listed(StateRows<Rows...>) {
  return {Rows::kRow...};
}

// The arrays that a step reads and writes, in the order of Slice::states.
template <class Step>
std::vector<StateRow> state_rows(const Choices& choices) {
  std::vector<StateRow> rows = listed(typename Step::OwnStates{});
  if (choices.amsgrad) rows.push_back(MaxExpAvgSq::kRow);
  if (choices.keeps_rest()) rows.push_back(KahanComp::kRow);
  if (choices.in_8_bits()) rows.push_back(BlockBases::kRow);
  return rows;
}

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
