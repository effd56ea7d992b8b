#include "window.h"

#include "../step/element_step.h"
#include "clones.h"
#include "storage.h"

namespace grokfused::cpu {
namespace {

template <class Param, class Stored>
GROK_CPU_CLONES void amplify(const WindowTile& of_tile, int size, const void* of_step) {
  using Real = typename Param::Real;
  // Copies: the compiler then knows that no store changes them.
  const WindowTile tile = of_tile;
  const auto scalars = *static_cast<const ScalarsOf<Real>*>(of_step);
  const auto* grad = static_cast<const typename Param::Stored*>(tile.grad);
  const auto* leaving = static_cast<const typename Stored::Stored*>(tile.leaving);
  const auto* sum = static_cast<const Real*>(tile.sum);
  auto* entering = static_cast<typename Stored::Stored*>(tile.entering);
  auto *new_sum = static_cast<Real*>(tile.new_sum), *amplified = static_cast<Real*>(tile.amplified);
#pragma omp simd
  for (int i = 0; i < size; ++i) {
    Element<Real, Mean::States> element;
    element.grad = Param::widen(grad[i]) * scalars.grad_factor;
    element.grad_sum = taken_off(sum[i], Stored::widen(leaving[i]));
    Mean::apply(element, scalars, Stored::kFormat);
    entering[i] = Stored::round(element.grad_window);
    new_sum[i] = element.grad_sum;
    amplified[i] = element.grad;
  }
}

// A processor sees no pattern in what is read: a few lines of a plane, then some of one that lies far away.
GROK_HD void fetch(const void* plane, size_t bytes) {
  for (size_t line = 0; line < bytes; line += kCacheLine)
    __builtin_prefetch(static_cast<const char*>(plane) + line);
}

template <class Stored, class Real>
GROK_CPU_CLONES void sum_others(const void* leaving, const Window& window, void* others, int size) {
  auto* sums = static_cast<Real*>(others);
  const auto* planes = static_cast<const typename Stored::Stored*>(leaving);
  for (int i = 0; i < size; ++i) sums[i] = 0;
  for (int32_t k = 1; k < window.size; ++k) {
    const auto* plane = planes + window.behind(k);
    fetch(planes + window.behind(k + 1 < window.size ? k + 1 : k), size * sizeof *planes);
#pragma omp simd
    for (int i = 0; i < size; ++i) sums[i] = added(sums[i], Stored::widen(plane[i]));
  }
}

template <class Param>
WindowLoops loops_of(Format window) {
  if constexpr (Param::kFormat == Format::kFloat64) {
    return {amplify<Param, Float64>, sum_others<Float64, double>};
  } else {
    if (window == Format::kBFloat16) return {amplify<Param, BFloat16>, sum_others<BFloat16, float>};
    return {amplify<Param, Float32>, sum_others<Float32, float>};
  }
}

}  // namespace

WindowLoops window_loops(Format param, Format window) {
  if (param == Format::kFloat64) return loops_of<Float64>(window);
  if (param == Format::kBFloat16) return loops_of<BFloat16>(window);
  return param == Format::kFloat16 ? loops_of<Float16>(window) : loops_of<Float32>(window);
}

}  // namespace grokfused::cpu
