// The op's registration for the CPU. The kernels are compiled in the files of their parameters' formats.
#include "../op.h"
#include "kernel.h"

namespace grokfused {
namespace {

Kernel choose_cpu_kernel(const Policies& policies) {
  Kernel kernel = nullptr;
  with_param_format(policies.param_dtype,
                    [&](auto format) { kernel = cpu::kernel_for<decltype(format)>(policies); });
  return kernel;
}

const RegisterKernels registered("cpu", choose_cpu_kernel);

STABLE_TORCH_LIBRARY_IMPL(grokfused, CPU, library) {
  library.impl("adamw_step_", &adamw_step<choose_cpu_kernel>);
}

}  // namespace
}  // namespace grokfused
