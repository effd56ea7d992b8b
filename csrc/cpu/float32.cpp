// The kernels for float32 parameters.
#include "kernel.h"

template grokfused::Kernel grokfused::cpu::kernel_for<grokfused::Float32>(const grokfused::Policies&);
