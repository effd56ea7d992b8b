// The op's schema, and the pybind11 module: how this file was built, and the repeated launch. Nothing
// else: the kernels register themselves (csrc/cpu, csrc/cuda).
#include <pybind11/pybind11.h>
#include <torch/csrc/stable/library.h>

#include "launch.h"

#ifndef GROK_VERSION
#error "setup.py defines GROK_VERSION, GROK_TORCH and GROK_FLAGS"
#endif
#ifndef GROK_CUDA_ARCHITECTURES  // built without nvcc or with a torch that knows no CUDA
#define GROK_CUDA_ARCHITECTURES ""
#endif

// Updates params, states and step counters in place, for all tensors in one pass. max_exp_avg_sqs, grad_emas
// and kahan_comps are empty lists when the options do not use them. masks hold a bit per element
// (csrc/step/mask.h) in int32 words, none for a tensor without a mask, and mask_modes what becomes of the
// elements left out; both lists are empty where no tensor has a mask. Row rows[t] of `scalars`
// (csrc/step/scalars.h) holds the numbers of tensor t. Gradients are divided by grad_scale; where found_inf
// is not 0 nothing changes. Both, `steps` and `scalars` are on the CPU, or all of them with the params.
STABLE_TORCH_LIBRARY(grokfused, library) {
  library.def(
      "adamw_step_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, "
      "Tensor(c!)[] exp_avg_sqs, Tensor(d!)[] max_exp_avg_sqs, Tensor(e!)[] grad_emas, "
      "Tensor(f!)[] kahan_comps, Tensor[] masks, Tensor(g!) steps, Tensor scalars, int[] rows, *, "
      "str grad_filter, str decay, bool amsgrad, str state_rounding, str param_rounding, int seed, "
      "int[] mask_modes=[], Tensor? grad_scale=None, Tensor? found_inf=None) -> ()");
}

PYBIND11_MODULE(_C, module) {
  module.def("build_info", [] {
    pybind11::dict info;
    info["version"] = GROK_VERSION;
    info["built_with_torch"] = GROK_TORCH;
    info["torch_target"] = "2.10";
    info["compiler"] = __VERSION__;
    info["flags"] = GROK_FLAGS;
    info["cpu_architectures"] = pybind11::make_tuple("x86-64-v4", "x86-64-v3", "baseline");
    const pybind11::str architectures(GROK_CUDA_ARCHITECTURES);
    info["cuda_architectures"] = pybind11::tuple(architectures.attr("replace")(";", " ").attr("split")());
    return info;
  });

  using grokfused::Launch;
  using grokfused::Members;
  using grokfused::TensorReader;
  namespace py = pybind11;
  const auto make = [](const py::capsule& exchange, const std::string& device, const std::string& param_dtype,
                       const std::string& state_dtype, const py::list& params, const py::tuple& members,
                       std::vector<py::object> names, bool sharded, const std::string& grad_filter,
                       const std::string& decay, bool amsgrad, const std::string& state_rounding,
                       const std::string& param_rounding, int64_t seed,
                       const std::vector<int64_t>& mask_modes) {
    const grokfused::Policies policies{param_dtype, state_dtype, state_rounding, param_rounding,
                                       grad_filter, decay,       amsgrad};
    return Launch(TensorReader(exchange), grokfused::choose_kernel(device, policies), params,
                  Members(members), std::move(names), mask_modes, sharded, seed);
  };
  py::class_<Launch>(module, "Launch")
      .def(py::init(make), py::arg("exchange"), py::arg("device"), py::arg("param_dtype"),
           py::arg("state_dtype"), py::arg("params"), py::arg("members"), py::arg("names"), py::kw_only(),
           py::arg("sharded"), py::arg("grad_filter"), py::arg("decay"), py::arg("amsgrad"),
           py::arg("state_rounding"), py::arg("param_rounding"), py::arg("seed"),
           py::arg("mask_modes") = std::vector<int64_t>())
      .def(
          "knows",
          [](Launch& launch, const py::list& params, const py::list& grads, const py::tuple& members) {
            return launch.knows(params, grads, Members(members));
          },
          py::arg("params"), py::arg("grads"), py::arg("members"))
      .def("count", &Launch::count, py::arg("steps"))
      .def(
          "step",
          [](Launch& launch, const py::object& scalars, const py::list& rows, uintptr_t steps,
             uintptr_t grad_scale, uintptr_t found_inf) {
            const bool on_device = !py::isinstance<py::list>(scalars);
            const auto address = on_device ? scalars.cast<uintptr_t>() : launch.take_scalars(scalars);
            launch.take_rows(rows);
            const py::gil_scoped_release others_run;
            launch.step(address, steps, grad_scale, found_inf, on_device);
          },
          py::arg("scalars"), py::arg("rows"), py::arg("steps"), py::arg("grad_scale"), py::arg("found_inf"));
}
