// The kernels for float64 parameters.
#include "launcher.h"

template grokfused::Kernel grokfused::cuda::kernel_for<grokfused::Float64>(const grokfused::Policies&);
