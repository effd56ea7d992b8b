// Rows for steps that the device counts: one thread derives one, in float64, and the first of all what clips
// the gradients. All that a launch needs is its argument, so that nothing is copied and a captured graph
// keeps it.
//
// Memory: 4 bytes read and 52 written per tensor (104 beside float64 parameters).
#include "../rows.h"
#include "launcher.h"

namespace grokfused::cuda {
namespace {

constexpr int kTensors = 128, kGroups = 14;

struct RowsArgument {
  DeviceGroup groups[kGroups];
  const float* counters[kTensors];
  float starts[kTensors];
  uint8_t group_of[kTensors];
  Clipping clipping;
  void* rows;
  int32_t tensors;
};
static_assert(sizeof(RowsArgument) <= 4096, "the driver takes so much in one go");

template <class Real>
__global__ void rows_kernel(const __grid_constant__ RowsArgument of) {
  const auto t = static_cast<int32_t>(threadIdx.x);
  if (t < of.tensors)
    put_row<Real>(row_after(of.groups[of.group_of[t]], *of.counters[t], of.starts[t]), of.rows, t);
  if (t == 0) put_divisor<Real>(of.clipping);
}

void make_rows(const Rows& of) {
  const torch::stable::accelerator::DeviceGuard guard(of.device_index);
  const cudaStream_t stream = current_stream(of.device_index);
  const size_t count = of.counters.size(), row = kScalarCount * (of.wide ? sizeof(double) : sizeof(float));
  for (size_t begin = 0, end = begin; begin < count; begin = end) {
    RowsArgument argument{};
    if (begin == 0) argument.clipping = of.clipping;
    std::map<int32_t, uint8_t> places;  // group -> its place in the argument
    for (; end < count && end - begin < kTensors; ++end) {
      const int32_t group = of.group_of[end];
      if (places.size() == kGroups && !places.count(group)) break;
      const auto place = places.emplace(group, static_cast<uint8_t>(places.size())).first->second;
      const size_t k = end - begin;
      argument.groups[place] = of.groups[group];
      argument.group_of[k] = place;
      argument.counters[k] = of.counters[end];
      argument.starts[k] = of.starts[end];
    }
    argument.rows = static_cast<char*>(of.rows) + begin * row;
    argument.tensors = static_cast<int32_t>(end - begin);
    const auto kernel = of.wide ? rows_kernel<double> : rows_kernel<float>;
    kernel<<<1, kTensors, 0, stream>>>(argument);
    cuda_succeed(cudaGetLastError(), "the scalars of a step cannot be derived on the device");
  }
}

const RegisterRows registered("cuda", make_rows);

}  // namespace
}  // namespace grokfused::cuda
