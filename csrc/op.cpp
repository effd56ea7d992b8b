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
  using grokfused::TensorReader;
  const auto make = [](const pybind11::capsule& exchange, const std::string& device,
                       const std::string& param_dtype, const std::string& state_dtype,
                       const Launch::Arrays& arrays, const std::string& grad_filter, const std::string& decay,
                       bool amsgrad, const std::string& state_rounding, const std::string& param_rounding,
                       int64_t seed, const std::vector<int64_t>& mask_modes) {
    const grokfused::Policies policies{param_dtype, state_dtype, state_rounding, param_rounding,
                                       grad_filter, decay,       amsgrad};
    return Launch(TensorReader(exchange), grokfused::choose_kernel(device, policies), arrays, mask_modes,
                  seed);
  };
  pybind11::class_<Launch>(module, "Launch")
      .def(pybind11::init(make), pybind11::arg("exchange"), pybind11::arg("device"),
           pybind11::arg("param_dtype"), pybind11::arg("state_dtype"), pybind11::arg("arrays"),
           pybind11::kw_only(), pybind11::arg("grad_filter"), pybind11::arg("decay"),
           pybind11::arg("amsgrad"), pybind11::arg("state_rounding"), pybind11::arg("param_rounding"),
           pybind11::arg("seed"), pybind11::arg("mask_modes") = std::vector<int64_t>())
      .def("knows", &Launch::knows, pybind11::arg("arrays"), pybind11::arg("grads"))
      .def("step", &Launch::step, pybind11::arg("scalars"), pybind11::arg("rows"), pybind11::arg("steps"),
           pybind11::arg("grad_scale"), pybind11::arg("found_inf"), pybind11::arg("on_device"),
           pybind11::call_guard<pybind11::gil_scoped_release>());
}
