// The sum of squares over many arrays. It knows no tensor.
#pragma once

#include <vector>

#include "../step/storage.h"

namespace grokfused::cpu {

struct Values {
  const void* data;
  int64_t size;
  Format format;
};

double sum_of_squares(const std::vector<Values>& all);

}  // namespace grokfused::cpu
