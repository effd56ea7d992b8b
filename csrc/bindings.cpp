// The pybind11 module: how this file was built, the walk over what a step works on, and the norm of gradients
// before it. Nothing else: the kernels register themselves (csrc/cpu, csrc/cuda).
#include "norm.h"
#include "walk.h"

#ifndef GROK_VERSION
#error "setup.py defines GROK_VERSION, GROK_TORCH and GROK_FLAGS"
#endif
#ifndef GROK_NVCC  // built without nvcc or with a torch that knows no CUDA
#define GROK_NVCC ""
#define GROK_NVCC_FLAGS ""
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
  info["nvcc"] = GROK_NVCC;
  info["nvcc_flags"] = GROK_NVCC_FLAGS;
  info["cpu_architectures"] = py::make_tuple("x86-64-v4", "x86-64-v3", "baseline");
  const py::str architectures(GROK_CUDA_ARCHITECTURES);
  info["cuda_architectures"] = py::tuple(architectures.attr("replace")(";", " ").attr("split")());
  return info;
}

// (backend, numbered by the device, policy, first place) of each bucket.
py::list kinds(const grokfused::Walk& walk) {
  py::list found;
  for (const grokfused::Bucket& bucket : walk.buckets)
    found.append(py::make_tuple(*bucket.alike.backend, bucket.alike.numbers_on_device, bucket.alike.policy,
                                bucket.places.front()));
  return found;
}

// As grokfused.state.arrays calls whose dtype an array has, in the order of Of.
constexpr const char* kOf[] = {"states", "window", "param", "real", "bases"};

grokfused::Of of_named(const std::string& name) {
  const auto found = std::find(std::begin(kOf), std::end(kOf), name);
  if (found == std::end(kOf)) grokfused::fail("an array is of nothing that is called ", name);
  return static_cast<grokfused::Of>(found - std::begin(kOf));
}

// `samples`: a tensor, its negative view and a parameter; `keys`: the dispatch keys of the first two, and the
// one that a conjugate view has.
std::unique_ptr<grokfused::Table> table(
    const py::capsule& exchange, const std::vector<std::tuple<py::object, int, std::string, bool>>& rows,
    py::object choose, py::object dtensor_class, const std::vector<py::object>& samples,
    const std::vector<uint64_t>& keys) {
  if (rows.size() > grokfused::kMaxArrays) grokfused::fail("a step has too many arrays");
  std::vector<grokfused::ArrayRow> arrays;
  for (const auto& [name, planes, of, stays] : rows) arrays.push_back({name, planes, of_named(of), stays});
  std::vector<py::object> plain{py::type::of(samples.at(0)), py::type::of(samples.at(2))};
  auto table = std::make_unique<grokfused::Table>(
      grokfused::Table{grokfused::TensorReader(exchange), std::move(arrays), std::move(plain),
                       std::move(dtensor_class), grokfused::PolicyTable(std::move(choose))});
  table->read.learn(samples.at(0), samples.at(1), keys.at(0), keys.at(1), keys.at(2));
  return table;
}

// `members`: those of grokfused.step.members.
std::unique_ptr<grokfused::Walk> walk(const py::object& table, const py::tuple& members,
                                      const py::list& policies, const py::list& policy_of,
                                      const py::object& fitted, const py::tuple& numbering) {
  const py::object owner = members[0];
  return std::make_unique<grokfused::Walk>(
      grokfused::Members{members[2], members[3], members[4], members[5], owner.attr("state"), fitted, table},
      policies, policy_of, numbering);
}

}  // namespace

// (name, planes, of, byte, is signed) of each state array of a step; the last two as states of 8 bits have
// them.
py::list state_rows(const std::string& grad_filter, bool amsgrad, bool keeps_rest,
                    const std::string& states) {
  const char* rounding = keeps_rest ? "kahan" : "nearest";
  const grokfused::Policies policies{"bfloat16", states,  "float32", "stochastic", rounding, grad_filter,
                                     "coupled",  amsgrad, 2};
  py::list found;
  for (const auto& row : grokfused::choose_kernel("cpu", policies).states)
    found.append(py::make_tuple(py::str(row.name.data(), row.name.size()), row.planes,
                                kOf[static_cast<size_t>(row.of)], row.in_8_bits.byte,
                                row.in_8_bits.is_signed));
  return found;
}

PYBIND11_MODULE(_C, module) {
  using grokfused::Table;
  using grokfused::Walk;
  module.def("build_info", &build_info);
  module.def("state_rows", &state_rows);

  py::class_<Table>(module, "Table")
      .def(py::init(&table), py::arg("exchange"), py::arg("rows"), py::arg("choose"),
           py::arg("dtensor_class"), py::arg("samples"), py::arg("keys"))
      .def_property_readonly("knows_keys", [](const Table& table) { return table.read.knows_keys(); })
      .def("with_grads", &grokfused::with_grads)
      .def("sum_of_squares", &grokfused::sum_of_squares)
      .def("walk", &walk, py::arg("members"), py::arg("policies"), py::arg("policy_of"), py::arg("fitted"),
           py::arg("numbering"));

  py::class_<Walk>(module, "Walk")
      .def_readonly("unfit", &Walk::unfit)
      .def_readonly("keys", &Walk::keys)
      .def_property_readonly("sharded", &Walk::sharded)
      .def_property_readonly("begins", [](const Walk& walk) { return walk.shared.begins; })
      .def_property_readonly("itself", [](const Walk& walk) { return walk.shared.itself; })
      .def_property_readonly("kinds", &kinds)
      .def("rows", [](const Walk& walk, size_t bucket) { return walk.buckets.at(bucket).rows(); })
      .def("lists", &Walk::lists)
      .def("modes", [](const Walk& walk, size_t bucket) { return walk.buckets.at(bucket).mask_modes(); })
      .def("groups", &Walk::groups_of)
      .def("starts", &Walk::starts_of)
      .def("derive", &Walk::derive)
      .def("scalars", &Walk::scalars)
      .def("derive_there", &Walk::derive_there, py::arg("bucket"), py::arg("rows"), py::arg("groups"),
           py::arg("clipping"))
      .def("run", &Walk::run, py::arg("bucket"), py::arg("table"), py::arg("grad_scale"),
           py::arg("found_inf"));
}
