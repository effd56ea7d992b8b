// A warp on the CPU: its threads have stacks of their own, and take turns where they wait for each other.
#pragma once

#include <ucontext.h>

#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

namespace warp {

constexpr unsigned kThreads = 32;
constexpr size_t kStack = 1 << 16;

struct State {
  ucontext_t home, threads[kThreads];
  std::vector<char> stacks = std::vector<char>(kThreads * kStack);
  unsigned lane;
  bool ended[kThreads];
  // Who has given a number in the exchange under way, who has taken one, and whether anyone did in a turn of
  // all.
  unsigned gave, took;
  bool moved;
  unsigned char given[kThreads][8];
  const std::function<void(unsigned)>* body;
};
static State state;

inline void begin() {
  (*state.body)(state.lane);
  state.ended[state.lane] = true;
}

// Calls body(lane) for the threads of one warp.
inline void run(const std::function<void(unsigned)>& body) {
  state.body = &body;
  state.gave = state.took = 0;
  for (unsigned lane = 0; lane < kThreads; ++lane) {
    state.ended[lane] = false;
    ucontext_t& thread = state.threads[lane];
    getcontext(&thread);
    thread.uc_stack.ss_sp = state.stacks.data() + lane * kStack;
    thread.uc_stack.ss_size = kStack;
    thread.uc_link = &state.home;
    makecontext(&thread, begin, 0);
  }
  for (bool any = true; any;) {
    any = state.moved = false;
    for (state.lane = 0; state.lane < kThreads; ++state.lane) {
      if (state.ended[state.lane]) continue;
      any = true;
      swapcontext(&state.home, &state.threads[state.lane]);
      state.moved |= state.ended[state.lane];
    }
    if (any && !state.moved) std::abort();  // they wait for one that has ended
  }
}

inline void wait() {
  const Index index = threadIdx;
  swapcontext(&state.threads[state.lane], &state.home);
  threadIdx = index;
}

// What the thread `apart` from this one gives, of those that exchange with each other, one bit each.
template <class Number>
Number exchange(unsigned who, Number number, int apart) {
  const unsigned lane = state.lane, self = 1u << lane;
  while (state.gave & self) wait();  // others have yet to take what it gave before
  std::memcpy(state.given[lane], &number, sizeof number);
  state.gave |= self;
  state.moved = true;
  while ((state.gave & who) != who) wait();
  std::memcpy(&number, state.given[lane ^ static_cast<unsigned>(apart)], sizeof number);
  state.took |= self;
  state.moved = true;
  if ((state.took & who) == who) {
    state.gave &= ~who;
    state.took &= ~who;
  }
  return number;
}

}  // namespace warp

template <class Number>
Number __shfl_xor_sync(unsigned who, Number number, int apart) {
  return warp::exchange(who, number, apart);
}
