// The kernels for bfloat16 parameters.
#include "kernel.h"

template grokfused::Kernel grokfused::cpu::kernel_for<grokfused::BFloat16>(const grokfused::Policies&);
