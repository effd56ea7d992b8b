// The kernels of CUDA, compiled in the files of their parameters' formats, enter the table of kernels.
#include "launcher.h"

namespace grokfused {
namespace {

Kernel choose_cuda_kernel(const Policies& policies) {
  if (choices_of(policies).in_8_bits()) return cuda::kernel_of_8_bits(policies);
  switch (param_format_named(policies.param_dtype)) {
    case Format::kBFloat16: return cuda::kernel_for<BFloat16>(policies);
    case Format::kFloat16: return cuda::kernel_for<Float16>(policies);
    case Format::kFloat64: return cuda::kernel_for<Float64>(policies);
    default: return cuda::kernel_for<Float32>(policies);
  }
}

const RegisterKernels registered("cuda", choose_cuda_kernel);

}  // namespace
}  // namespace grokfused
