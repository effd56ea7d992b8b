// A CPU step that is taken again and again on the same memory: the op checked it once, this remembers
// where it lies. For small models the checks and conversions of every tensor cost more than the step.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "../step/fail.h"
#include "../step/rounding.h"
#include "adamw_cpu.h"

namespace grokfused {

class CpuLaunch {
 public:
  using Addresses = std::vector<uintptr_t>;

  // `arrays`: addresses of params, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, grad_emas; unused ones empty.
  CpuLaunch(CpuKernel kernel, const std::vector<Addresses>& arrays, const std::vector<int64_t>& sizes,
            int64_t seed)
      : kernel_(kernel), slices_(sizes.size()), scalars_(sizes.size()), seed_(static_cast<uint32_t>(seed)) {
    if (arrays.size() != 5) fail("a launch takes the addresses of 5 arrays, got ", arrays.size());
    for (const Addresses& array : arrays)
      if (!array.empty() && array.size() != sizes.size())
        fail("a launch takes ", sizes.size(), " addresses per array, got ", array.size());
    for (size_t t = 0; t < sizes.size(); ++t) {
      const auto at = [&](size_t k) { return pointer(arrays[k].empty() ? 0 : arrays[k][t]); };
      slices_[t] = Slice{at(0), nullptr, at(1), at(2), at(3), at(4), sizes[t], 0};
    }
  }

  // `table`: rows of Scalars; `steps`: one float per slice, advanced afterwards.
  void step(const Addresses& grads, uintptr_t table, const std::vector<int64_t>& rows, uintptr_t steps) {
    if (grads.size() != slices_.size() || rows.size() != slices_.size())
      fail("a launch of ", slices_.size(), " slices got ", grads.size(), " gradients and ", rows.size(),
           " rows");
    const auto* scalars = static_cast<const Scalars*>(pointer(table));
    for (size_t t = 0; t < slices_.size(); ++t) {
      scalars_[t] = scalars[rows[t]];
      slices_[t].grad = pointer(grads[t]);
      slices_[t].random_key = random_key(seed_, static_cast<uint32_t>(scalars_[t].step));
    }
    kernel_(slices_, scalars_);
    auto* counters = static_cast<float*>(pointer(steps));
    for (size_t t = 0; t < slices_.size(); ++t) counters[t] = scalars_[t].step;
  }

 private:
  static void* pointer(uintptr_t address) { return reinterpret_cast<void*>(address); }

  CpuKernel kernel_;
  std::vector<Slice> slices_;
  std::vector<Scalars> scalars_;
  uint32_t seed_;
};

}  // namespace grokfused
