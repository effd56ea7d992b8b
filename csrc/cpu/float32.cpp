// The loops for float32 parameters, and for those that a window's loops have widened.
#include "kernel.h"

namespace grokfused::cpu {

template std::pair<Update, Update> updates_of<Float32, ElementStep<NoFilter, CurrentSecondMoment>>(
    const Choices&);
template std::pair<Update, Update> updates_of<Float32, ElementStep<NoFilter, LargestSecondMoment>>(
    const Choices&);
template Kernel kernel_for<Float32>(const Policies&);

}  // namespace grokfused::cpu
