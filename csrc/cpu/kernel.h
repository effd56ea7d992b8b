// The CPU kernels: what runs a work by one of the loops of update.h.
#pragma once

#include "../work.h"
#include "tile.h"

namespace grokfused::cpu {

// Goes through the elements of all tensors, on all threads. `Real`: in which they are computed.
template <class Real>
void run_all(const Work& work, const Parts& parts);
extern template void run_all<float>(const Work&, const Parts&);
extern template void run_all<double>(const Work&, const Parts&);

template <class Format, class Step>
void run(const Work& work, const Choices& choices) {
  const Update update = update_of<Format, Step, false>(choices.state, choices.state_rounding);
  Update selecting = nullptr;
  if constexpr (sizeof(typename Format::Stored) >= 4 || Step::States::kShares)
    selecting = update_of<Format, Step, true>(choices.state, choices.state_rounding);
  run_all<typename Format::Real>(work, Parts(update, selecting, choices, state_rows<Step>(choices)));
}

// The kernel for parameters of one format. Compiled for each in a file of its own, which a build runs side by
// side.
template <class Format>
Kernel kernel_for(const Policies& policies) {
  Kernel kernel{nullptr, choices_of(policies), {}};
  with_element_step(policies, [&](auto step) {
    kernel.run = run<Format, decltype(step)>;
    kernel.states = state_rows<decltype(step)>(kernel.choices);
  });
  return kernel;
}

extern template Kernel kernel_for<Float64>(const Policies&);
extern template Kernel kernel_for<Float32>(const Policies&);
extern template Kernel kernel_for<BFloat16>(const Policies&);
extern template Kernel kernel_for<Float16>(const Policies&);

}  // namespace grokfused::cpu
