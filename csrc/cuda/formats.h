// How the arrays of a step are stored: what is known as a kernel is compiled, and what it asks as it runs.
#pragma once

#include <type_traits>

#include "../step/block8.h"
#include "../step/element_step.h"

namespace grokfused {

constexpr int kAlignment = 16;  // bytes of the widest load there is

// Parameters of 16 bits, of whichever format was chosen.
struct In16Bits {
  using Stored = uint16_t;
  using Real = float;
};

// States in 8 bits: of a pack they are no part (block8.h).
struct In8BitBlocks {
  using Stored = uint8_t;
  using Real = float;
};

// A step, and in which formats its arrays are.
template <class ParamFormat, class StateFormat, class ElementStep>
struct StoredStep {
  using Param = ParamFormat;
  using State = StateFormat;
  using Step = ElementStep;
  using States = typename ElementStep::OwnStates;  // AMSGrad's and Kahan's come after them, if they are there
  using Real = typename Param::Real;
  // Elements that a thread steps at once: 16 bytes of the widest arrays. Of those of 16 bits it moves 8, so
  // that neighbouring threads fill whole sectors of every array. Of states in 8 bits it steps half as many of
  // each quarter of a block: two words. For four there are not enough registers.
  static constexpr bool kIn8Bits = std::is_same_v<State, In8BitBlocks>;
  static constexpr int kWidth = kAlignment / sizeof(Real) / (kIn8Bits ? 2 : 1);
  static constexpr bool kCanKeepRest = sizeof(typename Param::Stored) == 2;

  // Whether a pack has values of an array.
  static GROK_HD constexpr bool is_packed(const StateRow& row) { return !kIn8Bits || row.of != Of::kStates; }
};

// How an array is stored whose format is known as the kernel is compiled.
template <class Stored, class Row>
using FormatOf = std::conditional_t<
    Row::kRow.of == Of::kReal,
    std::conditional_t<std::is_same_v<typename Stored::Real, double>, Float64, Float32>,
    std::conditional_t<Row::kRow.of == Of::kParam, typename Stored::Param, typename Stored::State>>;

// Calls use(format) with that of parameters.
template <class Stored, class Use>
GROK_HD void with_param(const Choices& choices, Use&& use) {
  if constexpr (!std::is_same_v<typename Stored::Param, In16Bits>)
    use(typename Stored::Param{});
  else if (choices.param == Format::kBFloat16)
    use(BFloat16{});
  else
    use(Float16{});
}

// Calls use(format) with that of an array; of a window, the one that was chosen.
template <class Stored, class Row, class Use>
GROK_HD void with_format(Row, const Choices& choices, Use&& use) {
  if constexpr (Row::kRow.of != Of::kWindow)
    use(FormatOf<Stored, Row>{});
  else if constexpr (std::is_same_v<typename Stored::Real, double>)
    use(Float64{});
  else if (choices.window == Format::kBFloat16)
    use(BFloat16{});
  else
    use(Float32{});
}

// Calls use(row, place) for every state of a step in 8 bits. AMSGrad's, where it is there, is the last one.
template <class Stored, class Use>
GROK_HD void each_in_8_bits(const Choices& choices, Use&& use) {
  Stored::States::each([&](auto row, int place) {
    if constexpr (decltype(row)::kRow.of == Of::kStates) use(row, place);
  });
  if (choices.amsgrad) use(MaxExpAvgSq{}, Stored::States::kCount);
}

}  // namespace grokfused
