// The pybind11 module: how this file was built, and the walk over what a step works on. Nothing else: the
// kernels register themselves (csrc/cpu, csrc/cuda).
#include "walk.h"

#ifndef GROK_VERSION
#error "setup.py defines GROK_VERSION, GROK_TORCH and GROK_FLAGS"
#endif
#ifndef GROK_CUDA_ARCHITECTURES  // built without nvcc or with a torch that knows no CUDA
#define GROK_CUDA_ARCHITECTURES ""
#endif

namespace {

namespace py = pybind11;

py::dict build_info() {
  py::dict info;
  info["version"] = GROK_VERSION;
  info["built_with_torch"] = GROK_TORCH;
  info["torch_target"] = "2.11";
  info["compiler"] = __VERSION__;
  info["flags"] = GROK_FLAGS;
  info["cpu_architectures"] = py::make_tuple("x86-64-v4", "x86-64-v3", "baseline");
  const py::str architectures(GROK_CUDA_ARCHITECTURES);
  info["cuda_architectures"] = py::tuple(architectures.attr("replace")(";", " ").attr("split")());
  return info;
}

// (backend, numbered by the device, policy, first place) of each bucket.
py::list kinds(const grokfused::Walk& walk) {
  py::list found;
  for (const grokfused::Bucket& bucket : walk.buckets)
    found.append(py::make_tuple(walk.backends[bucket.alike.backend], bucket.alike.numbers_on_device,
                                bucket.alike.policy, bucket.places.front()));
  return found;
}

}  // namespace

// (name, like_param) of each state array of a step.
py::list state_rows(const std::string& param_dtype, const std::string& state_dtype,
                    const std::string& state_rounding, const std::string& param_rounding,
                    const std::string& grad_filter, const std::string& decay, bool amsgrad) {
  py::list found;
  for (const auto& row : grokfused::choose_kernel("cpu", {param_dtype, state_dtype, state_rounding,
                                                          param_rounding, grad_filter, decay, amsgrad})
                             .states)
    found.append(py::make_tuple(py::str(row.name.data(), row.name.size()), row.like_param));
  return found;
}

PYBIND11_MODULE(_C, module) {
  using grokfused::Table;
  using grokfused::Walk;
  module.def("build_info", &build_info);
  module.def("state_rows", &state_rows);

  py::class_<Table>(module, "Table")
      .def(py::init([](const py::capsule& exchange, const py::object& sample, std::vector<py::object> names,
                       std::vector<bool> like_param, py::object choose, py::object is_neg) {
             if (names.size() > grokfused::kMaxStates) grokfused::fail("a step has too many arrays");
             auto table =
                 std::make_unique<Table>(Table{grokfused::TensorReader(exchange), std::move(names),
                                               std::move(like_param), std::move(choose), std::move(is_neg)});
             table->read.learn(sample);
             return table;
           }),
           py::arg("exchange"), py::arg("sample"), py::arg("names"), py::arg("like_param"), py::arg("choose"),
           py::arg("is_neg"));

  py::class_<grokfused::Policy>(module, "Policy").def(py::init<const py::tuple&>(), py::arg("fields"));

  module.def("with_grads", &grokfused::with_grads, py::arg("groups"));

  py::class_<Walk>(module, "Walk")
      .def(py::init([](const Table& table, py::list keys, py::list params, py::list grads, py::list groups,
                       py::object states, py::object fitted, const py::list& policies,
                       const py::list& policy_of_group, const py::object& dtensor,
                       const std::vector<std::string>& numbering) {
             return std::make_unique<Walk>(
                 table,
                 grokfused::Members{std::move(keys), std::move(params), std::move(grads), std::move(groups),
                                    std::move(states), std::move(fitted)},
                 policies, policy_of_group, dtensor, numbering);
           }),
           py::keep_alive<1, 2>())
      .def_readonly("unfit", &Walk::unfit)
      .def_readonly("keys", &Walk::keys)
      .def_property_readonly("sharded", &Walk::sharded)
      .def_property_readonly("apart", [](const Walk& walk) { return walk.shared.apart; })
      .def_property_readonly("itself", [](const Walk& walk) { return walk.shared.itself; })
      .def_property_readonly("kinds", &kinds)
      .def("rows", [](const Walk& walk, size_t bucket) { return walk.buckets.at(bucket).rows(); })
      .def("lists", &Walk::lists)
      .def("modes", [](const Walk& walk, size_t bucket) { return walk.buckets.at(bucket).mask_modes(); })
      .def("groups", &Walk::groups_of)
      .def("starts", &Walk::starts_of)
      .def("take_rows", &Walk::take_rows)
      .def("run", &Walk::run, py::arg("bucket"), py::arg("scalars"), py::arg("grad_scale"),
           py::arg("found_inf"));
}
