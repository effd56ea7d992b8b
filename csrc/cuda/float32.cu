// The kernels for float32 parameters.
#include "launcher.h"

template grokfused::Kernel grokfused::cuda::kernel_for<grokfused::Float32>(const grokfused::Policies&);
