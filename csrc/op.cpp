// The op's schema, and the pybind11 module that tells how this file was built. Nothing else: the
// kernels register themselves (csrc/cpu, csrc/cuda).
#include <pybind11/pybind11.h>
#include <torch/csrc/stable/library.h>

#ifndef GROK_VERSION
#error "setup.py defines GROK_VERSION, GROK_TORCH and GROK_FLAGS"
#endif

// Updates params, states and step counters in place, for all tensors in one pass. grad_emas and
// max_exp_avg_sqs are empty lists when the options do not use them. Row rows[t] of `scalars`
// (csrc/step/scalars.h) holds the numbers of tensor t.
STABLE_TORCH_LIBRARY(grokfused, library) {
  library.def(
      "adamw_step_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, "
      "Tensor(c!)[] exp_avg_sqs, Tensor(d!)[] max_exp_avg_sqs, Tensor(e!)[] grad_emas, "
      "Tensor(f!) steps, Tensor scalars, int[] rows, *, str grad_filter, str decay, bool amsgrad, "
      "str state_rounding, int seed) -> ()");
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
    info["cuda_architectures"] = pybind11::tuple();
    return info;
  });
}
