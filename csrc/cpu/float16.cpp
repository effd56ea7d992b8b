// The kernels for float16 parameters.
#include "kernel.h"

template grokfused::Kernel grokfused::cpu::kernel_for<grokfused::Float16>(const grokfused::Policies&);
