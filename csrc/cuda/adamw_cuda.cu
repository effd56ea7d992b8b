// The op's registration for CUDA. The kernels are compiled in the files of their parameters' formats.
#include "../op.h"
#include "launcher.h"

namespace grokfused {
namespace {

Kernel choose_cuda_kernel(const Policies& policies) {
  Kernel kernel = nullptr;
  with_param_format(policies.param_dtype,
                    [&](auto format) { kernel = cuda::kernel_for<decltype(format)>(policies); });
  return kernel;
}

const RegisterKernels registered("cuda", choose_cuda_kernel);

STABLE_TORCH_LIBRARY_IMPL(grokfused, CUDA, library) {
  library.impl("adamw_step_", &adamw_step<choose_cuda_kernel>);
}

}  // namespace
}  // namespace grokfused
