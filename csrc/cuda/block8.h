// Blocks of states in 8 bits (../step/block8.h): neighbouring threads of a warp step one together. Each takes
// some of its words, and the elements whose codes lie there; of each quarter of the block these are
// neighbours. What becomes of the states stays in registers, until the threads know the largest of each.
#pragma once

#include "../step/block8.h"
#include "chunks.h"
#include "packs.h"

namespace grokfused {

// The largest number of `kTogether` neighbours, a power of two, that all call it; each of them gets it.
template <int kTogether>
__device__ uint32_t largest_of(uint32_t number) {
  const uint32_t lane = threadIdx.x % 32, all = (1u << kTogether) - 1;
  const uint32_t callers = all << lane / kTogether * kTogether;
#pragma unroll
  for (int apart = 1; apart < kTogether; apart *= 2) {
    const uint32_t other = __shfl_xor_sync(callers, number, apart);
    number = other > number ? other : number;
  }
  return number;
}

// Of a state in 8 bits, what a thread reads or writes at once.
template <int kWidth>
struct alignas(kToAWord* kWidth) Words {
  uint32_t values[kWidth];
};

// kWidth words of a block, from `word` on. With one word to a thread, the block may have fewer elements than
// 64 and lie anywhere, and codes are read and written one by one.
template <class Stored, int kWidth>
struct BlockPart {
  static constexpr bool kWhole = kWidth > 1;
  static constexpr int kTogether = kWords / kWidth, kPlaces = Stored::States::kCount + 1;
  using Quarter = Packs<Stored, kWidth>;
  template <class Row>
  using Code = Block8<Row::kRow.in_8_bits.is_signed>;

  const Chunk& chunk;
  const Choices& choices;
  int begin;  // of the block in the chunk
  int count;  // elements of the block
  int word;
  uint32_t bases = 0;
  Words<kWidth> codes[kPlaces] = {};
  float values[kPlaces][kToAWord][kWidth] = {};  // of states after the step

  GROK_HD int in_block(int k) const { return k * kWords + word; }
  GROK_HD bool has(int k) const { return kWhole || in_block(k) < count; }
  GROK_HD int byte(int k) const { return begin + (count < kBlock ? in_block(k) : byte_of(in_block(k))); }
  GROK_HD uint8_t* codes_of(int place) const { return static_cast<uint8_t*>(chunk.states[place]); }

  GROK_HD Words<kWidth> read(int place) const {
    const uint8_t* from = codes_of(place);
    if constexpr (kWhole) return *reinterpret_cast<const Words<kWidth>*>(from + begin + kToAWord * word);
    uint32_t found = 0;
#pragma unroll
    for (int k = 0; k < kToAWord; ++k)
      if (has(k)) found |= uint32_t{from[byte(k)]} << 8 * k;
    return {found};
  }

  GROK_HD void write(int place, const Words<kWidth>& words) const {
    uint8_t* to = codes_of(place);
    if constexpr (kWhole) {
      *reinterpret_cast<Words<kWidth>*>(to + begin + kToAWord * word) = words;
    } else {
#pragma unroll
      for (int k = 0; k < kToAWord; ++k)
        if (has(k)) to[byte(k)] = static_cast<uint8_t>(words.values[0] >> 8 * k);
    }
  }

  template <class Row>
  GROK_HD float decoded(Row, int place, int k, int j) const {
    const uint32_t base = bases >> 8 * Row::kRow.in_8_bits.byte & 255u;
    return Code<Row>::decode(code_in(codes[place].values[j], k), base);
  }

  GROK_HD void load(Quarter (&quarters)[kToAWord], const Window& window) {
#pragma unroll
    for (int k = 0; k < kToAWord; ++k)
      if (has(k)) quarters[k].load(chunk, choices, window, begin + in_block(k));
    each_in_8_bits<Stored>(choices, [&](auto, int place) { codes[place] = read(place); });
    bases = chunk.bases[begin / kBlock];
  }

  // One element of each of the thread's words; the parameters are written.
  GROK_HD void step(Quarter& quarter, int k, const ScalarsOf<float>& scalars) {
    const uint32_t first = chunk.first + static_cast<uint32_t>(begin + in_block(k));
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      auto element = quarter.element_of(j, choices);
      each_in_8_bits<Stored>(choices, [&](auto row, int place) {
        value_of<decltype(row)>(element) = decoded(row, place, k, j);
      });
      Stored::Step::run(element, scalars, choices);
      quarter.put(j, element, choices, Quarter::draws_of(j, choices, chunk.random_key, first));
      each_in_8_bits<Stored>(
          choices, [&](auto row, int place) { values[place][k][j] = value_of<decltype(row)>(element); });
    }
  }

  // Takes back what the mask does not keep.
  GROK_HD void leave_out(Quarter& quarter, int k, uint32_t kept) {
    quarter.leave_out(chunk, choices, begin + in_block(k), kept);
    each_in_8_bits<Stored>(choices, [&](auto row, int place) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const Where where(kept_bits(kept, j), chunk.mask_mode);
        float& value = values[place][k][j];
        value = float_of(masked(where, bits_of(value), bits_of(decoded(row, place, k, j))));
      }
    });
  }

  __device__ void encode() {
    uint32_t base[kPlaces];
    each_in_8_bits<Stored>(choices, [&](auto row, int place) {
      uint32_t largest = 0;
#pragma unroll
      for (int k = 0; k < kToAWord; ++k)
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
          const uint32_t size = has(k) ? size_of(values[place][k][j]) : 0;
          largest = size > largest ? size : largest;
        }
      base[place] = Code<decltype(row)>::base_of(largest_of<kTogether>(largest));
      constexpr int kShift = 8 * decltype(row)::kRow.in_8_bits.byte;
      bases = (bases & ~(255u << kShift)) | base[place] << kShift;
    });
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      const uint32_t hash = block8_bits(chunk.random_key, chunk.first + static_cast<uint32_t>(begin),
                                        static_cast<uint32_t>(word + j));
      each_in_8_bits<Stored>(choices, [&](auto, int place) { codes[place].values[j] = 0; });
#pragma unroll
      for (int k = 0; k < kToAWord; ++k) {
        const uint32_t draw = block8_draw(hash, k);
        each_in_8_bits<Stored>(choices, [&](auto row, int place) {
          const uint32_t code = Code<decltype(row)>::encode(values[place][k][j], base[place], draw);
          codes[place].values[j] |= in_word(code, k);
        });
      }
    }
  }

  GROK_HD uint64_t kept_elements() const {
    const uint64_t low = kept_lanes(chunk.mask, begin, count < kLanes ? count : kLanes);
    if (count <= kLanes) return low;
    return low | uint64_t{kept_lanes(chunk.mask, begin + kLanes, count - kLanes)} << kLanes;
  }

  // All threads of a block call it. One of which the mask keeps nothing is not encoded anew.
  __device__ void run(const ScalarsOf<float>& scalars, const Window& window) {
    const uint64_t kept = chunk.mask ? kept_elements() : ~uint64_t{0}, all = ~uint64_t{0} >> (kBlock - count);
    if (kept == 0) return clear();
    Quarter quarters[kToAWord];
    load(quarters, window);
#pragma unroll
    for (int k = 0; k < kToAWord; ++k) {
      if (!has(k)) continue;
      step(quarters[k], k, scalars);
      if (chunk.mask && kept != all) leave_out(quarters[k], k, static_cast<uint32_t>(kept >> in_block(k)));
      quarters[k].store(chunk, choices, begin + in_block(k));
    }
    encode();
    each_in_8_bits<Stored>(choices, [&](auto, int place) { write(place, codes[place]); });
    if (word == 0) chunk.bases[begin / kBlock] = bases;
  }

  // Codes are 0 since the mask was set, as all states are; see Packs::clear.
  GROK_HD void clear() {
    bool any = false;
#pragma unroll
    for (int k = 0; k < kToAWord; ++k)
      if (has(k)) any |= Quarter{}.clear(chunk, choices, begin + in_block(k));
    if (any) each_in_8_bits<Stored>(choices, [&](auto, int place) { write(place, {}); });
  }
};

// Blocks from one number to another.
template <class Stored, int kWidth>
__device__ void run_blocks(const Chunk& chunk, const Choices& choices, int thread, int from, int to,
                           const ScalarsOf<float>& scalars, const Window& window) {
  constexpr int kTogether = BlockPart<Stored, kWidth>::kTogether;
  for (int block = from + thread / kTogether; block < to; block += kThreads / kTogether) {
    const int begin = block * kBlock, left = static_cast<int>(chunk.size) - begin;
    const int count = kWidth > 1 || left > kBlock ? kBlock : left, word = thread % kTogether * kWidth;
    BlockPart<Stored, kWidth>{chunk, choices, begin, count, word}.run(scalars, window);
  }
}

}  // namespace grokfused
