"""Which GPUs a build runs on: told before the step, by info() and by the backend, without a GPU."""

import warnings
from typing import Any

import pytest
import torch

import grokfused
from grokfused import backends
from grokfused.backends import BackendUnavailable, Kind, choose, kind_on
from grokfused.backends.gpus import Gpu, code_for

DEFAULT = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0+PTX")
ON_CUDA = Kind("cuda", torch.float32, dense=True)


@pytest.mark.parametrize(
    ("capability", "built", "code"),
    [
        ((7, 5), ("8.0", "9.0+PTX"), "none"),
        ((7, 0), DEFAULT, "none"),
        ((8, 6), ("8.0",), "machine code"),
        ((8, 0), ("8.6",), "none"),
        ((8, 9), ("8.6+PTX",), "machine code"),
        ((9, 0), ("8.0",), "none"),
        ((9, 0), ("8.0+PTX",), "PTX"),
        ((9, 0), ("9.0a",), "machine code"),
        ((10, 0), ("9.0a+PTX",), "none"),
        ((10, 3), DEFAULT, "machine code"),
        ((11, 0), DEFAULT, "none"),
        ((12, 0), ("8.0", "9.0", "10.0+PTX"), "PTX"),
        ((12, 1), DEFAULT, "machine code"),
        ((13, 0), DEFAULT, "PTX"),
        ((8, 0), ("native",), "machine code"),
    ],
    ids=str,
)
def test_machine_code_runs_on_its_major_number_and_ptx_on_all_later_gpus(capability, built, code) -> None:
    assert code_for(Gpu("some", capability), built) == code


@pytest.fixture
def machine(monkeypatch):
    """Returns a function that acts a machine: its GPUs, what _C is built for, and why not for more."""
    native, triton = backends.backend("native"), backends.backend("triton")

    class Built:
        def build_info(self) -> dict[str, Any]:
            return {"cuda_architectures": self.architectures}

    def act(
        found: dict[str, tuple[int, int]], architectures: tuple[str, ...], error: str | None = None
    ) -> None:
        Built.architectures = architectures
        monkeypatch.setattr(native, "_C", Built())
        monkeypatch.setattr(native, "_build_error", error)
        monkeypatch.setattr(triton, "why_not", lambda kind: None if kind.device == "cuda" else "no")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(found))
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: list(found)[index])
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: list(found.values())[index])

    choose.cache_clear()
    yield act
    choose.cache_clear()


def test_a_gpu_without_code_is_refused_by_name_and_auto_takes_triton(machine) -> None:
    machine({"Tesla T4": (7, 5)}, ("8.0", "9.0+PTX"))
    info = grokfused.info()
    assert info["gpus"] == ["Tesla T4 (7.5)"]
    assert info["auto"] == {"cpu": "native", "cuda": "triton"}
    assert info["backends"]["native"]["why_not"]["cuda"] == (
        "_C has kernels for compute capability 8.0, 9.0+PTX, which Tesla T4 (7.5) cannot run: build again "
        "with TORCH_CUDA_ARCH_LIST='7.5'"
    )
    assert choose("auto", ON_CUDA) == "triton"
    with pytest.raises(BackendUnavailable, match=r"Tesla T4 \(7\.5\) cannot run"):
        choose("native", ON_CUDA)


def test_beside_a_gpu_without_code_another_one_runs_natively(machine) -> None:
    machine({"NVIDIA A100": (8, 0), "Tesla T4": (7, 5)}, ("8.0", "9.0+PTX"))
    info = grokfused.info()
    assert info["gpus"] == ["NVIDIA A100 (8.0)", "Tesla T4 (7.5)"]
    assert info["auto"] == {"cpu": "native", "cuda:0": "native", "cuda:1": "triton"}
    assert info["backends"]["native"]["available"] == ["cpu", "cuda:0"]
    assert list(info["backends"]["native"]["why_not"]) == ["cuda:1"]
    refused = info["backends"]["native"]["why_not"]["cuda:1"]
    assert refused.endswith("build again with TORCH_CUDA_ARCH_LIST='8.0;7.5'")  # which leaves none out
    first, second = (kind_on(f"cuda:{index}", torch.float32) for index in range(2))
    assert (choose("auto", first), choose("auto", second)) == ("native", "triton")
    assert choose("native", first) == "native"
    with pytest.raises(BackendUnavailable, match=r"Tesla T4 \(7\.5\) cannot run"):
        choose("native", second)


def test_gpus_that_are_alike_are_one_device_of_info(machine) -> None:
    machine({"NVIDIA H100": (9, 0), "NVIDIA H200": (9, 0)}, DEFAULT)
    assert grokfused.info()["auto"] == {"cpu": "native", "cuda": "native"}


@pytest.mark.parametrize("name", ["auto", "native"])
def test_a_gpu_for_which_the_driver_compiles_is_told_before_the_step(machine, name) -> None:
    machine({"NVIDIA RTX 5090": (12, 0)}, ("9.0", "10.0+PTX"))
    told = (
        "_C has no machine code for NVIDIA RTX 5090 (12.0): the driver compiles the kernels in the first "
        "step, which takes long; to avoid that, build again with TORCH_CUDA_ARCH_LIST='12.0'"
    )
    assert grokfused.info()["backends"]["native"]["note"] == {"cuda": told}
    with pytest.warns(RuntimeWarning) as caught:
        assert choose(name, ON_CUDA) == "native"
    assert [str(each.message) for each in caught] == [told]


def test_nothing_is_told_of_a_gpu_that_has_its_code(machine) -> None:
    machine({"NVIDIA H200": (9, 0)}, DEFAULT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose("native", ON_CUDA) == "native"
    assert grokfused.info()["backends"]["native"] == {"available": ["cpu", "cuda"], "why_not": {}, "note": {}}


def test_what_made_the_cuda_build_fail_is_told(machine) -> None:
    machine({"NVIDIA H200": (9, 0)}, (), "nvcc fatal: out of luck")
    info = grokfused.info()
    assert info["build"]["cuda_error"] == "nvcc fatal: out of luck"
    why_not = info["backends"]["native"]["why_not"]["cuda"]
    assert why_not == "_C was built without a kernel for cuda:\nnvcc fatal: out of luck"
    assert info["auto"]["cuda"] == "triton"
