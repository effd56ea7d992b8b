// One look at everything a step works on, where it is now: parameters, gradients, states, step counters and
// masks are read, held, compared with their parameter and sorted by what is done with them. Nothing is
// changed before `run`, and nothing of it is kept for the next step. It must not know the update.
#pragma once

#include <pybind11/stl.h>

#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bucket.h"
#include "members.h"
#include "overlap.h"
#include "packed_mask.h"
#include "place.h"

namespace grokfused {

class Walk {
 public:
  // `policies`: tuples; `policy_of_group`: group -> its policy; `numbering`: the devices that can number
  // steps.
  Walk(Members members, const py::list& policies, const py::list& policy_of_group, const py::tuple& numbering)
      : table_(members.table.cast<Table&>()), in_(std::move(members)), reader_(table_) {
    for (const py::handle policy : policies)
      policies_.push_back(table_.policies.read(py::reinterpret_borrow<py::tuple>(policy)));
    for (const py::handle number : policy_of_group) policy_of_group_.push_back(number.cast<size_t>());
    for (const py::handle device : numbering)
      numbering_.push_back(text_of(device.ptr()) == "cpu" ? kCpu : kCuda);
    const size_t count = in_.params.size();
    if (in_.keys.size() != count || in_.grads.size() != count || in_.groups.size() != count)
      fail("a walk takes one key, parameter, gradient and group a place");
    places_.resize(count);
    extents_.reserve(count * (3 + table_.arrays.size()));
    Entries state_of(in_.states);
    for (size_t begin = 0; begin < count; begin += kAtOnce)
      look_at(begin, std::min(count, begin + kAtOnce), state_of);
    shared = sharing(extents_, count);
  }

  std::vector<size_t> unfit;  // places that Python has to look at before a walk can take them
  Sharing shared{};
  std::vector<Bucket> buckets;
  std::vector<std::tuple<size_t, double, double>>
      keys;  // row -> group, steps so far, the filter's first step

  bool sharded() const { return reader_.sharded; }

  // Derives the rows of `keys` from the groups. `ask`: Python's step_scalars, for groups that are not plain.
  void derive(const py::list& groups, const py::object& ask) {
    rows_ = HostRows();
    for (const auto& [group, count, start] : keys) {
      const Gate& gate = policies_[policy_of_group_[group]]->gate;
      rows_.add(groups[group], gate, count + 1.0, start, table_.hyperparameters, ask);
    }
    rows_.round();
  }

  std::vector<std::vector<double>> scalars() const { return rows_.lists(); }

  // Has the device of a bucket derive its rows, after the steps that it has counted. `rows`: a tensor there,
  // [tensors, fields of Scalars] of the numbers in which the bucket is computed; `groups`: number -> its
  // hyperparameters in the order of Hyperparameters, and the tensors, or None, that lr, beta1 and beta2 are;
  // `clipping`: as clipping_of takes it.
  void derive_there(size_t index, const py::object& rows, const py::dict& groups,
                    const py::object& clipping) {
    Bucket& own = buckets.at(index);
    Rows found;
    std::map<size_t, int32_t> place_of;
    for (const auto& [number, of] : groups) {
      place_of.emplace(number.cast<size_t>(), static_cast<int32_t>(found.groups.size()));
      found.groups.push_back(device_group(py::reinterpret_borrow<py::tuple>(of), table_.read));
    }
    for (const size_t t : own.places) {
      found.group_of.push_back(place_of.at(group_of(t)));
      found.starts.push_back(static_cast<float>(places_[t].start));
    }
    found.counters = own.counters_there();
    found.rows = const_cast<void*>(address_of(rows));
    found.wide = own.alike.param_dtype == kFloat64;
    found.clipping = clipping_of(clipping, table_.read);
    found.device_index = own.alike.device_index;
    const py::gil_scoped_release others_run;
    row_makers().at(own.alike.device_type == kCpu ? "cpu" : "cuda")(found);
  }

  // Tensors, or None: the device's table of scalars instead of the rows taken; `grad_scale` and `found_inf`
  // of one number, where the scalars are. All but `found_inf` in the numbers in which the bucket is computed.
  void run(size_t bucket, const py::object& table, const py::object& grad_scale,
           const py::object& found_inf) {
    Bucket& own = buckets.at(bucket);
    const void* scalars = table.is_none() ? rows_.in(own.alike.param_dtype == kFloat64) : address_of(table);
    own.run(scalars, address_of(grad_scale), address_of(found_inf));
  }

  // The tensors of a bucket as lists, for a backend of Python's: by "param", "grad", "step", "mask" (the
  // words, with None where there is none) and the names of the arrays it uses.
  py::dict lists(size_t index) const {
    py::dict found;
    const auto add = [&](const py::object& name, auto&& held) {
      py::list list;
      for (const size_t t : buckets.at(index).places) {
        const py::object& tensor = held(places_[t]);
        list.append(tensor ? tensor : py::none());
      }
      found[name] = list;
    };
    add(py::str("param"), [](const Place& place) -> const py::object& { return place.param; });
    add(py::str("grad"), [](const Place& place) -> const py::object& { return place.grad; });
    add(py::str("step"), [](const Place& place) -> const py::object& { return place.step; });
    add(py::str("mask"), [](const Place& place) -> const py::object& { return place.mask; });
    for (const size_t k : buckets.at(index).arrays)
      add(table_.arrays[k].name, [&](const Place& place) -> const py::object& { return place.states[k]; });
    return found;
  }

  std::vector<size_t> groups_of(size_t index) const {
    std::vector<size_t> found;
    for (const size_t t : buckets.at(index).places) found.push_back(group_of(t));
    return found;
  }
  std::vector<double> starts_of(size_t index) const {
    std::vector<double> found;
    for (const size_t t : buckets.at(index).places) found.push_back(places_[t].start);
    return found;
  }

 private:
  const void* address_of(const py::object& numbers) const {
    DLTensor tensor;
    if (numbers.is_none()) return nullptr;
    if (!table_.read(numbers, tensor)) fail("the numbers of a step are no tensor");
    return tensor.address();
  }

  size_t group_of(size_t t) const { return PyLong_AsSize_t(at(in_.groups, t)); }
  size_t policy_number(size_t t) const { return policy_of_group_[group_of(t)]; }

  // Finds the objects first and reads them later: what is behind them then comes from memory meanwhile.
  void look_at(size_t begin, size_t end, Entries& state_of) {
    for (size_t t = begin; t < end; ++t) {
      Place& place = places_[t];
      place.param = py::reinterpret_borrow<py::object>(at(in_.params, t));
      place.grad = py::reinterpret_borrow<py::object>(at(in_.grads, t));
      const Policy& policy = *policies_[policy_number(t)];
      reader_.find(place, state_of(at(in_.keys, t)), policy);
      PlaceReader::each(place, [&](PyObject* tensor) { table_.read.prefetch(tensor); });
    }
    for (size_t t = begin; t < end; ++t)
      PlaceReader::each(places_[t], [&](PyObject* tensor) { table_.read.prefetch_storage(tensor); });
    for (size_t t = begin; t < end; ++t)
      if (!look(t, places_[t])) unfit.push_back(t);
  }

  // True where a place is as a backend needs it. Python says by name what is wrong, or mends it.
  bool look(size_t t, Place& place) {
    Param param;
    if (!reader_.look_at_param(place.param, param)) return false;
    note(param.tensor, t, true);
    Slice slice{};
    slice.param = param.tensor.address();
    slice.size = param.size;
    if (!look_at_grad(t, place, param, slice)) return false;
    const Policy& policy = *policies_[policy_number(t)];
    Dtypes dtypes;
    return look_at_states(t, place, param, policy, slice, dtypes) && look_at_mask(t, place, param, slice) &&
           sort(t, place, param, policy, dtypes, slice);
  }

  void note(const DLTensor& tensor, size_t t, bool written) {
    extents_.push_back(extent_of(tensor, t, written));
  }

  bool look_at_grad(size_t t, Place& place, const Param& param, Slice& slice) {
    const py::object mended =
        in_.fitted.is_none() ? py::object() : entry(in_.fitted.ptr(), py::int_(t).ptr());
    if (mended) place.grad = mended;
    DLTensor grad;
    if (!reader_.look_at_grad(place.grad, param, grad, static_cast<bool>(mended))) return false;
    note(grad, t, false);
    slice.grad = grad.address();
    return true;
  }

  bool look_at_states(size_t t, Place& place, const Param& param, const Policy& policy, Slice& slice,
                      Dtypes& dtypes) {
    if (place.has_more) return false;
    size_t used = 0;
    for (size_t k = 0; k < table_.arrays.size(); ++k) {
      const ArrayRow& array = table_.arrays[k];
      py::object& held = place.states[k];
      if (array.of == Of::kBases && !dtypes.in_8_bits()) {
        held = py::object();
        continue;
      }
      if (!policy.used[k]) continue;
      if (array.of == Of::kParam && !param.rounded) {
        if (held) return false;  // of a dtype that the parameter had once
        continue;
      }
      DLTensor state;
      if (!reader_.look_at_state(held, param, array.planes_of(policy), state)) return false;
      const uint32_t real = real_of(param.dtype) == kFloat64 ? kFloat64 : kFloat32;
      const bool pairs = is_complex(param.dtype);
      if (!dtypes.take(array.of, dtype_of(state), param.dtype, pairs ? param.dtype : real)) return false;
      note(state, t, true);
      slice.states[used++] = state.address();
    }
    return dtypes.fit(param.dtype);
  }

  bool look_at_mask(size_t t, Place& place, const Param& param, Slice& slice) {
    if (!place.mask) return true;
    if (is_complex(param.dtype)) return false;
    const PackedMask packed(place.mask);
    if (!packed.is_one()) return false;
    place.mask = packed.words();
    DLTensor words;
    py::object spec;
    if (!reader_.read(place.mask, words, spec) || !packed.fits(param, words)) return false;
    if (param.size) slice.mask = static_cast<const uint32_t*>(words.address());
    slice.mask_mode = packed.freezes() ? MaskMode::kFreeze : MaskMode::kZero;
    note(words, t, false);
    return packed.freezes() || (packed.zeroes() && packed.has_cleared(place, table_, reader_));
  }

  // Reads the step counter, and puts the place into the bucket of those that are stepped like it.
  bool sort(size_t t, Place& place, const Param& param, const Policy& policy, const Dtypes& dtypes,
            const Slice& slice) {
    DLTensor step;
    py::object spec;
    if (!reader_.read(place.step, step, spec) || element_count(step.sizes()) != 1) return false;
    if (table_.read.is_unresolved(place.step.ptr())) return false;
    const int32_t device = param.tensor.device_type;
    const bool can = std::count(numbering_.begin(), numbering_.end(), device) != 0;
    const bool by_device = can && (policy.device_numbers || step.device_type != kCpu);
    if (by_device ? dtype_of(step) != kFloat32 || !same_device(step, param.tensor)
                  : step.device_type != kCpu || !Counter::reads(step) || !is_count(Counter(step).read()))
      return false;
    note(step, t, true);
    const int32_t index = param.tensor.device_id;
    const std::string* backend =
        table_.policies.backend(policy.backend, device, index, param.dtype, param.dense, place.param);
    const Alike alike{policy_number(t),
                      real_of(param.dtype),
                      real_of(dtypes.states),
                      real_of(dtypes.window),
                      by_device,
                      device,
                      index,
                      backend};
    Bucket& bucket = bucket_of(alike, place, policy);
    const size_t row = by_device ? bucket.places.size() : row_of(t, Counter(step).read());
    bucket.add(t, row, slice, step);
    return true;
  }

  size_t row_of(size_t t, double count) {
    const std::tuple<size_t, double, double> key{group_of(t), count, places_[t].start};
    if (!keys.empty() && keys.back() == key) return keys.size() - 1;
    const auto [found, is_new] = row_of_key_.emplace(key, keys.size());
    if (is_new) keys.push_back(key);
    return found->second;
  }

  Bucket& bucket_of(const Alike& alike, const Place& place, const Policy& policy) {
    if (!buckets.empty() && buckets.back().alike == alike) return buckets.back();
    const auto [found, is_new] = bucket_of_alike_.emplace(alike, buckets.size());
    if (is_new) {
      buckets.emplace_back(alike, policy, buckets.empty() ? places_.size() : 1);
      for (size_t k = 0; k < table_.arrays.size(); ++k)
        if (place.states[k]) buckets.back().arrays.push_back(k);
    }
    return buckets[found->second];
  }

  Table& table_;
  Members in_;
  PlaceReader reader_;
  std::vector<std::shared_ptr<const Policy>> policies_;
  std::vector<size_t> policy_of_group_;
  std::vector<int32_t> numbering_;
  std::vector<Place> places_;
  std::vector<Extent> extents_;
  HostRows rows_;
  std::map<std::tuple<size_t, double, double>, size_t> row_of_key_;
  std::map<Alike, size_t> bucket_of_alike_;
};

}  // namespace grokfused
