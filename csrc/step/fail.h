// How native code refuses: an exception whose text is all the user sees. Host only.
#pragma once

#include <sstream>
#include <stdexcept>

namespace grokfused {

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  message << "grokfused: ";
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

}  // namespace grokfused
