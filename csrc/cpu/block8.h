// The loops of a step beside states of 8 bits. Their unit is a block (step/block8.h): a first loop reads and
// does the arithmetic, then the largest of each state is known, and a second one stores. Parameters and
// gradients come as real numbers, whatever their format: they lie in the first-level cache then.
#pragma once

#include <string_view>
#include <utility>

#include "update.h"

namespace grokfused::cpu {

// The loop of a step, and the one that chooses under a mask. The bases are the last of the states' arrays.
std::pair<Update, Update> updates_in_8_bits(std::string_view grad_filter, bool amsgrad);

}  // namespace grokfused::cpu
