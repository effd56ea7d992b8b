// The kernels for float64 parameters.
#include "kernel.h"

template grokfused::Kernel grokfused::cpu::kernel_for<grokfused::Float64>(const grokfused::Policies&);
