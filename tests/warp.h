// A warp on the CPU: its threads have stacks of their own and take turns where they exchange numbers.
#pragma once

#include <ucontext.h>

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
  int round[kThreads];                   // exchanges that a thread has begun
  unsigned char given[2][kThreads][8];  // in even and in odd ones
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
  for (unsigned lane = 0; lane < kThreads; ++lane) {
    state.ended[lane] = false;
    state.round[lane] = 0;
    ucontext_t& thread = state.threads[lane];
    getcontext(&thread);
    thread.uc_stack.ss_sp = state.stacks.data() + lane * kStack;
    thread.uc_stack.ss_size = kStack;
    thread.uc_link = &state.home;
    makecontext(&thread, begin, 0);
  }
  for (bool any = true; any;) {
    any = false;
    for (state.lane = 0; state.lane < kThreads; ++state.lane) {
      if (state.ended[state.lane]) continue;
      any = true;
      swapcontext(&state.home, &state.threads[state.lane]);
    }
  }
}

// What the thread `apart` from this one gives.
template <class Number>
Number exchange(Number number, int apart) {
  const unsigned lane = state.lane;
  const int odd = state.round[lane]++ % 2;
  std::memcpy(state.given[odd][lane], &number, sizeof number);
  swapcontext(&state.threads[lane], &state.home);
  std::memcpy(&number, state.given[odd][lane ^ static_cast<unsigned>(apart)], sizeof number);
  return number;
}

}  // namespace warp

template <class Number>
Number __shfl_xor_sync(unsigned, Number number, int apart) {
  return warp::exchange(number, apart);
}
