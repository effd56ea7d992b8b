// The mean of a window of gradients, in loops of their own: they hand the update an amplified gradient, which
// lies in the first-level cache, so that the formats of windows do not multiply its loops. It must not know
// what is done with the gradient.
#pragma once

#include "../step/storage.h"
#include "../step/windows.h"

namespace grokfused::cpu {

// The arrays of a tile. What is written may be what is read.
struct WindowTile {
  const void *grad, *leaving, *sum;  // of the parameter's format, the window's, and real numbers
  void *entering, *new_sum;
  void* amplified;  // the gradient, in real numbers
};

struct WindowLoops {
  // `scalars`: of the real numbers of the parameters.
  void (*amplify)(const WindowTile&, int size, const void* scalars);
  // What all but the leaving plane sum up to, the oldest first.
  void (*sum_others)(const void* leaving, const Window&, void* others, int size);
};

WindowLoops window_loops(Format param, Format window);

}  // namespace grokfused::cpu
