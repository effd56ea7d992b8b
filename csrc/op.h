// The op's body, the same on every device: check the arguments, choose the kernel, run it.
#pragma once

#include "check.h"
#include "work.h"

namespace grokfused {

template <ChooseKernel choose>
void adamw_step(StableIValue* stack, uint64_t, uint64_t) {
  const StepArguments in(stack);
  const CheckedStep step = checked_step(in);
  if (!step.work.slices.empty()) choose(step.policies)(step.work);
}

}  // namespace grokfused
