#include "storage.h"

#include <cstring>

#include "clones.h"
#include "reading.h"

namespace grokfused::cpu {
namespace {

template <class Format>
GROK_CPU_CLONES void narrow(const float* values, void* stored, void*, int size, uint32_t, uint32_t) {
  auto* to = static_cast<typename Format::Stored*>(stored);
#pragma omp simd
  for (int i = 0; i < size; ++i) to[i] = Format::round(values[i]);
}

template <class Format>
GROK_CPU_CLONES void narrow_and_keep(const float* values, void* stored, void* rest, int size, uint32_t,
                                     uint32_t) {
  auto* to = static_cast<typename Format::Stored*>(stored);
  auto* rest_to = static_cast<typename Format::Stored*>(rest);
#pragma omp simd
  for (int i = 0; i < size; ++i) {
    to[i] = Format::round(values[i]);
    rest_to[i] = Format::round(cut_off<Format>(values[i]));
  }
}

template <class Format>
GROK_CPU_CLONES void narrow_stochastically(const float* values, void* stored, void*, int size, uint32_t key,
                                           uint32_t first) {
  auto* to = static_cast<typename Format::Stored*>(stored);
#pragma omp simd
  for (int i = 0; i < size; ++i)
    to[i] = Format::round_stochastically(values[i], param_draw(key, first + static_cast<uint32_t>(i)));
}

template <class Format>
Narrow narrowing_of(Rounding rounding) {
  if (rounding == Rounding::kKahan) return narrow_and_keep<Format>;
  return rounding == Rounding::kStochastic ? narrow_stochastically<Format> : narrow<Format>;
}

template <class Format>
GROK_CPU_CLONES void widen(const void* stored, const void* rest, float* values, int size) {
  const auto *from = static_cast<const uint16_t*>(stored), *rests = static_cast<const uint16_t*>(rest);
#pragma omp simd
  for (int i = 0; i < size; ++i) values[i] = Format::widen(from[i]) + Format::widen(rests[i]);
}

template <class Stored>
GROK_CPU_CLONES void select_values(const void* stepped, const uint32_t* mask, MaskMode mode, void* stored,
                                   int size) {
  const auto* from = static_cast<const Stored*>(stepped);
  auto* to = static_cast<Stored*>(stored);
  const auto select = [&](int i, uint32_t lanes, int lane) GROK_INLINE {
    to[i] = masked_stored(Where(kept_in_lane(lanes, lane), mode), from[i], to[i]);
  };
  const int whole = size / kLanes * kLanes;
  for (int begin = 0; begin < whole; begin += kLanes) {
    const uint32_t lanes = mask[begin / kLanes];
#pragma omp simd
    for (int lane = 0; lane < kLanes; ++lane) select(begin + lane, lanes, lane);
  }
  for (int i = whole; i < size; ++i) select(i, mask[i / kLanes], i % kLanes);
}

}  // namespace

Narrow narrowing(Format format, Rounding rounding) {
  if (!is_16_bits(format)) return nullptr;
  return format == Format::kBFloat16 ? narrowing_of<BFloat16>(rounding) : narrowing_of<Float16>(rounding);
}

Widen widening(Format format) {
  if (!is_16_bits(format)) return nullptr;
  return format == Format::kBFloat16 ? widen<BFloat16> : widen<Float16>;
}

size_t bytes_of(Format format) {
  if (format == Format::kBlock8) return 1;
  if (format == Format::kFloat64) return sizeof(Float64::Stored);
  return format == Format::kFloat32 ? sizeof(Float32::Stored) : sizeof(BFloat16::Stored);
}

void select(size_t bytes, const void* stepped, const uint32_t* mask, MaskMode mode, void* stored, int size) {
  if (bytes == sizeof(double)) return select_values<double>(stepped, mask, mode, stored, size);
  const auto select = bytes == sizeof(float) ? select_values<float> : select_values<uint16_t>;
  select(stepped, mask, mode, stored, size);
}

GROK_CPU_CLONES bool all_zero(const void* stored, int64_t bytes) {
  typedef uint64_t Words __attribute__((vector_size(kCacheLine)));
  const auto* from = static_cast<const char*>(stored);
  constexpr int64_t kLine = kCacheLine;
  const int64_t lines = bytes / kLine, apart = lines / kStreams * kLine;
  Words all = {};
  const auto look = [&](const char* at) GROK_INLINE {
    Words words;
    std::memcpy(&words, at, sizeof words);
    __builtin_prefetch(at + kReadAhead, 0, 2);
    all |= words;
  };
  for (int64_t i = 0; i < apart; i += kLine)
    for (int stream = 0; stream < kStreams; ++stream) look(from + stream * apart + i);
  for (int64_t i = kStreams * apart; i < lines * kLine; i += kLine) look(from + i);
  uint64_t bits = 0;
  for (size_t k = 0; k < kLine / sizeof bits; ++k) bits |= all[k];
  for (int64_t i = lines * kLine; i < bytes; ++i) bits |= static_cast<unsigned char>(from[i]);
  return bits == 0;
}

}  // namespace grokfused::cpu
