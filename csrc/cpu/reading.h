// How memory is read where nothing else is done: by the norm, and by a look at what a mask left out.
#pragma once

namespace grokfused::cpu {

// From how many places side by side, because a processor has more of several under way than of one; and how
// many bytes are fetched ahead, because it stops at each page by itself.
constexpr int kStreams = 4, kReadAhead = 2048;

}  // namespace grokfused::cpu
