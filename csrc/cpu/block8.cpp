// Three states decoded, stepped and encoded are long chains: interleaved by the compiler they take 5 % less.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("schedule-insns")
#endif
#include "block8.h"

#include "../step/block8.h"
#include "storage.h"

namespace grokfused::cpu {
namespace {

template <bool kSigned>
GROK_HD void decode(const uint8_t* codes, uint32_t base, float* numbers) {
  uint32_t words[kWords];
  std::memcpy(words, codes, sizeof words);
#pragma GCC unroll 4
  for (int k = 0; k < kToAWord; ++k) {
#pragma omp simd
    for (int j = 0; j < kWords; ++j)
      numbers[k * kWords + j] = Block8<kSigned>::decode(code_in(words[j], k), base);
  }
}

// Of a number that is not above kLargest8; what has no sign needs no mask then.
template <bool kSigned>
GROK_HD uint32_t plain_size(float number) {
  return kSigned ? bits_of(number) & ~kSignBit : bits_of(number);
}

template <bool kSigned>
GROK_HD uint32_t largest_of(const float* numbers) {
  uint32_t largest = 0;
#pragma omp simd reduction(max : largest)
  for (int i = 0; i < kBlock; ++i) {
    const uint32_t size = plain_size<kSigned>(numbers[i]);
    largest = size > largest ? size : largest;
  }
  return largest;
}

// NaN, infinity and what is near it, and a second moment of -0, which few blocks have: all others are spared
// a minimum an element.
template <bool kSigned>
GROK_HD uint32_t saturated(float* numbers) {
  for (int i = 0; i < kBlock; ++i)
    numbers[i] = float_of(size_of(numbers[i]) | (kSigned && numbers[i] < 0 ? kSignBit : 0u));
  return largest_of<kSigned>(numbers);
}

// Returns the base.
template <bool kSigned>
GROK_HD uint8_t encode(float* numbers, const uint32_t* draws, uint8_t* codes) {
  uint32_t largest = largest_of<kSigned>(numbers);
  if (largest > kLargest8) largest = saturated<kSigned>(numbers);
  const uint32_t base = Block8<kSigned>::base_of(largest);
  uint32_t words[kWords];
#pragma omp simd
  for (int j = 0; j < kWords; ++j) {
    uint32_t word = 0;
#pragma GCC unroll 4
    for (int k = 0; k < kToAWord; ++k) {
      const int i = k * kWords + j;
      const uint32_t size = plain_size<kSigned>(numbers[i]);
      word |= in_word(Block8<kSigned>::encode(size, numbers[i] < 0, base, draws[i]), k);
    }
    words[j] = word;
  }
  std::memcpy(codes, words, sizeof words);
  return static_cast<uint8_t>(base);
}

// What one block reads and writes.
template <class Rows>
struct Block {
  const float *param, *grad;
  float* new_param;
  const uint32_t* kept;
  uint8_t* codes[Rows::kCount];
  uint8_t* bases;
  uint32_t first;  // the index in its tensor of its first element
};

template <class Step, bool kMasked, class Rows>
GROK_HD void step_block(const Block<Rows> block, uint32_t key, const void* zeros,
                        const ScalarsOf<float>& scalars, const Choices& choices) {
  alignas(kCacheLine) float numbers[Rows::kCount][kBlock];
  alignas(kCacheLine) uint32_t draws[kBlock];
  Arrays arrays;
  arrays.param = block.param;
  arrays.grad = block.grad;
  arrays.new_param = block.new_param;
  arrays.kept = block.kept;
  arrays.zeros = zeros;
  arrays.others_param = arrays.instead_of(block.param);
  Rows::each([&](auto row, int place) GROK_INLINE {
    constexpr In8Bits kKind = decltype(row)::kRow.in_8_bits;
    decode<kKind.is_signed>(block.codes[place], block.bases[kKind.byte], numbers[place]);
    arrays.states[place] = arrays.new_states[place] = numbers[place];
    arrays.others_states[place] = arrays.instead_of(numbers[place]);
  });
  constexpr int kStrip = kMasked ? kLanes : kBlock;
#pragma GCC unroll 2
  for (int strip = 0; strip < kBlock; strip += kStrip) {
    const uint32_t lanes = kept_in<kMasked>(arrays, strip);
#pragma omp simd
    for (int lane = 0; lane < kStrip; ++lane)
      update_element<AsFloat32, Step, kMasked>(arrays, lanes, {strip, lane}, scalars, choices);
  }
#pragma omp simd
  for (int j = 0; j < kWords; ++j) {
    const uint32_t hash = block8_bits(key, block.first, static_cast<uint32_t>(j));
#pragma GCC unroll 4
    for (int k = 0; k < kToAWord; ++k) draws[k * kWords + j] = block8_draw(hash, k);
  }
  Rows::each([&](auto row, int place) GROK_INLINE {
    constexpr In8Bits kKind = decltype(row)::kRow.in_8_bits;
    block.bases[kKind.byte] = encode<kKind.is_signed>(numbers[place], draws, block.codes[place]);
  });
}

// A block of which a mask keeps nothing keeps its bases.
template <class Rows>
GROK_HD void leave_out(const Block<Rows>& block, bool becomes_zero) {
  if (!becomes_zero) {
    std::memmove(block.new_param, block.param, kBlock * sizeof(float));
    return;
  }
  std::memset(block.new_param, 0, kBlock * sizeof(float));
  for (uint8_t* codes : block.codes) std::memset(codes, 0, kBlock);
}

template <bool kMasked, class Rows>
GROK_HD Block<Rows> block_at(int begin, const Arrays& tile) {
  Block<Rows> block{static_cast<const float*>(tile.param) + begin,
                    static_cast<const float*>(tile.grad) + begin,
                    static_cast<float*>(tile.new_param) + begin,
                    kMasked ? tile.kept + begin / kLanes : nullptr,
                    {},
                    static_cast<uint8_t*>(tile.new_states[Rows::kCount]) + begin / kBlock * kToAWord,
                    tile.first + static_cast<uint32_t>(begin)};
  for (int place = 0; place < Rows::kCount; ++place)
    block.codes[place] = static_cast<uint8_t*>(tile.new_states[place]) + begin;
  return block;
}

// What a later block reads: the arithmetic takes so long that the processor by itself looks too short ahead.
template <class Rows>
GROK_HD void fetch_block_ahead(const Block<Rows>& block) {
  constexpr int kAhead = 6 * kBlock;
  for (int i = 0; i < kBlock; i += kCacheLine / sizeof(float)) {
    __builtin_prefetch(block.param + kAhead + i);
    __builtin_prefetch(block.grad + kAhead + i);
  }
  for (const uint8_t* codes : block.codes) __builtin_prefetch(codes + kAhead);
}

template <class Step, bool kMasked>
GROK_CPU_CLONES void update_blocks(const Arrays& of_tile, int size, const void* scalars,
                                   const Choices& of_all) {
  using Rows = typename Step::States;
  // Copies: the compiler then knows that no store changes them.
  const auto numbers = *static_cast<const ScalarsOf<float>*>(scalars);
  const Arrays tile = of_tile;
  const Choices choices = of_all;
  for (int begin = 0; begin < size; begin += kBlock) {
    const Block<Rows> block = block_at<kMasked, Rows>(begin, tile);
    fetch_block_ahead(block);
    if (!kMasked || (block.kept[0] | block.kept[1]))
      step_block<Step, kMasked>(block, tile.random_key, tile.zeros, numbers, choices);
    else
      leave_out(block, tile.zeros);
  }
}

}  // namespace

std::pair<Update, Update> updates_in_8_bits(std::string_view grad_filter, bool amsgrad) {
  std::pair<Update, Update> found;
  with_grad_filter(grad_filter, [&](auto filter) {
    using Filter = AfterWindow<decltype(filter)>;
    with_second_moment(amsgrad, [&](auto second_moment) {
      using Step = ElementStep<Filter, decltype(second_moment)>;
      found = {update_blocks<Step, false>, update_blocks<Step, true>};
    });
  });
  return found;
}

}  // namespace grokfused::cpu
