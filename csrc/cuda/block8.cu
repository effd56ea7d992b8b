// The kernels for states in 8 bits.
#include "launcher.h"

namespace grokfused::cuda {

Kernel kernel_of_8_bits(const Policies& policies) {
  const bool narrow = is_16_bits(param_format_named(policies.param_dtype));
  return narrow ? kernel_in<In16Bits, In8BitBlocks>(policies) : kernel_in<Float32, In8BitBlocks>(policies);
}

}  // namespace grokfused::cuda
