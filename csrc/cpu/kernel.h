// The CPU kernels: what runs a work by one of the loops of update.h.
#pragma once

#include <type_traits>
#include <utility>
#include <vector>

#include "../work.h"
#include "block8.h"
#include "tile.h"

namespace grokfused::cpu {

// Goes through the elements of all tensors, on all threads. `Real`: in which they are computed.
template <class Real>
void run_all(const Work& work, const Parts& parts);
extern template void run_all<float>(const Work&, const Parts&);
extern template void run_all<double>(const Work&, const Parts&);

// The loop of a step, and the one that chooses under a mask; null where loops of their own do.
template <class Format, class Step>
std::pair<Update, Update> updates_of(const Choices& choices) {
  constexpr bool kOf16Bits = sizeof(typename Format::Stored) == 2;
  const Rounding of_param = kOf16Bits ? choices.param_rounding : Rounding::kNearest;
  Update selecting = nullptr;
  if constexpr (!kOf16Bits)
    selecting = update_of<Format, Step, true>(choices.state, of_param, choices.state_rounding);
  return {update_of<Format, Step, false>(choices.state, of_param, choices.state_rounding), selecting};
}

extern template std::pair<Update, Update> updates_of<Float32, ElementStep<NoFilter, CurrentSecondMoment>>(
    const Choices&);
extern template std::pair<Update, Update> updates_of<Float32, ElementStep<NoFilter, LargestSecondMoment>>(
    const Choices&);

template <class Format, class GradFilter, class SecondMoment>
void run(const Work& work, const Choices& choices) {
  constexpr bool kHasWindow = std::is_same_v<GradFilter, Mean>;
  constexpr bool kOf16Bits = sizeof(typename Format::Stored) == 2;
  // float16 takes many instructions to read and write: they are better left to loops of their own.
  constexpr bool kWidens = kOf16Bits && (kHasWindow || std::is_same_v<Format, Float16>);
  using Own = std::conditional_t<kWidens, Float32, Format>;
  std::pair<Update, Update> updates;
  if (choices.in_8_bits()) {
    updates = updates_in_8_bits(GradFilter::kName, choices.amsgrad);
  } else {
    updates = updates_of<Own, ElementStep<AfterWindow<GradFilter>, SecondMoment>>(choices);
    if (kWidens) updates.second = nullptr;
  }
  const bool widens = kWidens || (kOf16Bits && choices.in_8_bits());
  const auto rows = state_rows<ElementStep<GradFilter, SecondMoment>>(choices);
  run_all<typename Format::Real>(work, Parts(updates, widens, kHasWindow, choices, rows));
}

// The kernel for parameters of one format. Compiled for each in a file of its own, which a build runs side by
// side.
template <class Format>
Kernel kernel_for(const Policies& policies) {
  Kernel kernel{nullptr, choices_of(policies), {}};
  with_grad_filter(policies.grad_filter, [&](auto filter) {
    with_second_moment(policies.amsgrad, [&](auto second_moment) {
      kernel.run = run<Format, decltype(filter), decltype(second_moment)>;
      kernel.states = state_rows<ElementStep<decltype(filter), decltype(second_moment)>>(kernel.choices);
    });
  });
  return kernel;
}

extern template Kernel kernel_for<Float64>(const Policies&);
extern template Kernel kernel_for<Float32>(const Policies&);
extern template Kernel kernel_for<BFloat16>(const Policies&);
extern template Kernel kernel_for<Float16>(const Policies&);

}  // namespace grokfused::cpu
