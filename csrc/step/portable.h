// What a compiler must be told so that one source serves the host and the device. The only file
// that asks which compiler is reading it; it knows nothing of optimizers.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define GROK_HD __host__ __device__ __forceinline__
#else
// Forced: a policy left out of line would be compiled for the baseline machine, outside the clone
// that target_clones picks, and the loop around it would not vectorise.
#define GROK_HD inline __attribute__((always_inline))
#endif
// Of a lambda, for the same reason.
#define GROK_INLINE __attribute__((always_inline))

namespace grokfused {

// Tells a device's compiler that an address it knows nothing of is one of global memory: its loads are
// then one kind instead of a choice between three. Not for null.
GROK_HD void assume_global([[maybe_unused]] const void* address) {
#ifdef __CUDA_ARCH__
  __builtin_assume(__isGlobal(address));
#endif
}

GROK_HD uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

GROK_HD uint64_t bits_of(double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

GROK_HD float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace grokfused
