// The CPU kernel's entry, for those who already have slices.
#pragma once

#include <string_view>
#include <vector>

#include "../step/scalars.h"
#include "../step/slice.h"

namespace grokfused {

// Steps all slices; slice t takes scalars[t].
using CpuKernel = void (*)(const std::vector<Slice>& slices, const std::vector<Scalars>& scalars);

CpuKernel choose_cpu_kernel(std::string_view param_dtype, std::string_view state_dtype,
                            std::string_view state_rounding, std::string_view grad_filter,
                            std::string_view decay, bool amsgrad);

}  // namespace grokfused
