// The kernels for float16 parameters.
#include "launcher.h"

template grokfused::Kernel grokfused::cuda::kernel_for<grokfused::Float16>(const grokfused::Policies&);
