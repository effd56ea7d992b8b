// The kernels for bfloat16 parameters.
#include "launcher.h"

template grokfused::Kernel grokfused::cuda::kernel_for<grokfused::BFloat16>(const grokfused::Policies&);
