// Rows for steps that the device counts, where the device is the CPU: the tests let it be.
#include "../rows.h"

namespace grokfused {
namespace {

void make_rows(const Rows& of) {
  const auto put = of.wide ? put_row<double> : put_row<float>;
  for (size_t t = 0; t < of.counters.size(); ++t)
    put(row_after(of.groups[of.group_of[t]], *of.counters[t], of.starts[t]), of.rows, t);
  of.wide ? put_divisor<double>(of.clipping) : put_divisor<float>(of.clipping);
}

const RegisterRows registered("cpu", make_rows);

}  // namespace
}  // namespace grokfused
