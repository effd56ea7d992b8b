"""The op itself refuses what it cannot work with, whoever calls it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from snapshot import bits_equal
from torch import Tensor

import grokfused.ops  # noqa: F401  (registers the op)
from grokfused import GrokAdamW

LISTS = ("params", "grads", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "grad_emas")
OP = torch.ops.grokfused.adamw_step_


def op_arguments(amsgrad: bool = True) -> dict[str, Any]:
    """Good arguments for two tensors; every list of tensors is filled."""
    arguments: dict[str, Any] = {
        name: [torch.full((4, 6), 0.5), torch.full((7,), 0.25)] for name in LISTS if amsgrad or name[0] != "m"
    }
    arguments.setdefault("max_exp_avg_sqs", [])
    return {
        **arguments,
        "kahan_comps": [],
        "masks": [torch.ones(1, dtype=torch.int32), torch.empty(0, dtype=torch.int32)],
        "steps": torch.zeros(2),
        "scalars": torch.full((2, 13), 0.5),
        "rows": [0, 1],
        "grad_filter": "ema",
        "decay": "decoupled",
        "amsgrad": amsgrad,
        "state_rounding": "nearest",
        "param_rounding": "nearest",
        "seed": 3,
        "mask_modes": [1, 0],
    }


def changed(name: str, change: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    def spoil(arguments: dict[str, Any]) -> None:
        arguments[name] = change(arguments[name])

    return spoil


def second(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Any]], None]:
    return changed(name, lambda tensors: [tensors[0], change(tensors[1])])


def first(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Any]], None]:
    return changed(name, lambda tensors: [change(tensors[0]), tensors[1]])


def every(change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Any]], None]:
    def spoil(arguments: dict[str, Any]) -> None:
        for name in LISTS:
            arguments[name] = [change(tensor) for tensor in arguments[name]]

    return spoil


BAD_CALLS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "unused list": (changed("amsgrad", lambda _: False), "max_exp_avg_sqs must hold 0 tensors"),
    "unused rest": (
        changed("kahan_comps", lambda _: [torch.zeros(4, 6), torch.zeros(7)]),
        "kahan_comps must hold 0 tensors",
    ),
    "unused filter state": (changed("grad_filter", lambda _: "none"), "grad_emas must hold 0 tensors"),
    "integer params": (every(Tensor.int), "float32, bfloat16 or float16"),
    "float64 params": (every(Tensor.double), "float32, bfloat16 or float16"),
    "params with gaps": (
        every(lambda t: torch.stack([t, t], dim=-1)[..., 0]),
        r"params\[0\] must fill its memory.*strides \[12, 2\]",
    ),
    "expanded params": (every(lambda t: t.flatten()[0].expand(t.shape)), r"params\[0\] must fill its memory"),
    "too few rows": (changed("rows", lambda rows: rows[:1]), "rows must hold 2 integers.* got 1"),
    "too many rows": (changed("rows", lambda rows: [*rows, 0]), "rows must hold 2 integers.* got 3"),
    "negative row": (changed("rows", lambda _: [0, -1]), r"rows must be in \[0, 2\), got -1"),
    "row past the table": (changed("rows", lambda _: [0, 2]), r"rows must be in \[0, 2\), got 2"),
    "empty table": (changed("scalars", lambda s: s[:0]), r"rows must be in \[0, 0\)"),
    "narrow table": (changed("scalars", lambda s: s[:, :12].clone()), r"scalars .*\[rows, 13\].*\[2, 12\]"),
    "wide table": (changed("scalars", lambda s: torch.ones(2, 14)), r"scalars .*\[rows, 13\].*\[2, 14\]"),
    "flat table": (changed("scalars", Tensor.flatten), r"scalars .*\[rows, 13\].*\[26\]"),
    "float64 table": (changed("scalars", Tensor.double), "scalars must be a contiguous float32"),
    "transposed table": (
        changed("scalars", lambda s: s.t().contiguous().t()),
        "scalars must be a contiguous float32",
    ),
    "table elsewhere": (changed("scalars", lambda s: s.to("meta")), "must be on one device"),
    "too few steps": (changed("steps", lambda s: s[:1]), r"steps .*shape \[2\], got float32 \[1\]"),
    "steps in a matrix": (changed("steps", lambda s: s[None]), r"steps .*shape \[2\], got float32 \[1, 2\]"),
    "integer steps": (changed("steps", Tensor.int), "steps must be a contiguous float32"),
    "steps with gaps": (changed("steps", lambda s: torch.zeros(4)[::2]), "steps must be a contiguous"),
    "unknown filter": (changed("grad_filter", lambda _: "mean"), "grad_filter must be none or ema, got mean"),
    "unknown decay": (changed("decay", lambda _: "l2"), "decay must be coupled or decoupled, got l2"),
    "unknown rounding": (
        changed("state_rounding", lambda _: "up"),
        "state_rounding must be nearest or stochastic, got up",
    ),
    "unknown rounding of params": (
        changed("param_rounding", lambda _: "up"),
        "param_rounding must be nearest, stochastic or kahan, got up",
    ),
    "too few masks": (changed("masks", lambda masks: masks[:1]), "masks must hold 2 tensors"),
    "bool mask": (
        first("masks", Tensor.bool),
        r"masks\[0\] must be contiguous int32 words, \[1\].* got Bool",
    ),
    "long mask": (
        first("masks", lambda m: m.repeat(2)),
        r"masks\[0\] must be .*int32 words, \[1\].* int32 \[2\]",
    ),
    "matrix mask": (
        first("masks", lambda m: m[None]),
        r"masks\[0\] must be .*int32 words, .* int32 \[1, 1\]",
    ),
    "mask elsewhere": (first("masks", lambda m: m.to("meta")), "device|meta|Meta"),
    "too few modes": (
        changed("mask_modes", lambda _: [1]),
        "mask_modes must hold one integer per mask, got 1 for 2",
    ),
    "unknown mode": (
        changed("mask_modes", lambda _: [2, 0]),
        r"mask_modes must be 0 \(zero\) or 1 \(freeze\), got 2",
    ),
}

for _name in LISTS:
    BAD_CALLS[f"{_name}: too many"] = (changed(_name, lambda x: [*x, x[0].clone()]), "must hold [23] tensors")
    if _name == "params":
        _message = r"params\[1\] must be float32 like params\[0\]"
    else:
        _message = rf"{_name}\[1\] must be float32, got bfloat16"
        BAD_CALLS[f"{_name}: too few"] = (changed(_name, lambda x: x[:1]), f"{_name} must hold 2 tensors")
        BAD_CALLS[f"{_name}: of another shape"] = (
            second(_name, lambda t: t[:6].clone()),
            rf"{_name}\[1\] must have the shape of params\[1\], \[7\], got \[6\]",
        )
        BAD_CALLS[f"{_name}: of the same size"] = (
            first(_name, lambda t: t.reshape(6, 4)),
            rf"{_name}\[0\] must have the shape of params\[0\]",
        )
        BAD_CALLS[f"{_name}: of other strides"] = (
            first(_name, lambda t: t.t().contiguous().t()),
            rf"{_name}\[0\] must have the strides of params\[0\], \[6, 1\], got \[1, 4\]",
        )
        BAD_CALLS[f"{_name}: with gaps"] = (
            second(_name, lambda t: torch.stack([t, t], dim=-1)[..., 0]),
            rf"{_name}\[1\] must have the strides of params\[1\], \[1\], got \[2\]",
        )
    BAD_CALLS[f"{_name}: of another dtype"] = (second(_name, Tensor.bfloat16), _message)
    BAD_CALLS[f"{_name}: elsewhere"] = (second(_name, lambda t: t.to("meta")), "device|meta|Meta")


@pytest.mark.parametrize("name", BAD_CALLS)
def test_the_op_refuses_bad_arguments_and_changes_nothing(name) -> None:
    spoil, message = BAD_CALLS[name]
    arguments = op_arguments()
    spoil(arguments)
    tensors = [tensor for key in LISTS for tensor in arguments[key]] + [arguments["steps"]]
    tensors = [tensor for tensor in tensors if not tensor.is_meta]
    before = [tensor.clone() for tensor in tensors]
    with pytest.raises(RuntimeError, match=message):
        OP(**arguments)
    assert all(map(bits_equal, tensors, before))


def test_the_op_takes_good_arguments() -> None:
    arguments = op_arguments()
    before = arguments["params"][1].clone()
    OP(**arguments)
    assert not torch.equal(arguments["params"][1], before)
    assert arguments["steps"].tolist() == [0.5, 0.5]
    nothing = {name: [] for name in (*LISTS, "masks", "mask_modes")}
    OP(**{**op_arguments(), **nothing, "steps": torch.zeros(0), "rows": []})


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_torch_itself_finds_the_op_registered_well(amsgrad, requires_grad) -> None:
    arguments = op_arguments(amsgrad)
    for tensor in arguments["params"]:
        tensor.requires_grad_(requires_grad)
    names = (*LISTS, "kahan_comps", "masks", "steps", "scalars", "rows")
    positional = tuple(arguments.pop(name) for name in names)
    checks = torch.library.opcheck(OP.default, positional, arguments)
    assert checks == dict.fromkeys(checks, "SUCCESS")


@pytest.mark.parametrize("of", ["param", "grad"])
@pytest.mark.parametrize("earlier_steps", [0, 1])
def test_freed_storage_is_refused(earlier_steps, of) -> None:
    param = torch.ones(4, requires_grad=True)
    param.grad = torch.ones(4)
    optimizer = GrokAdamW([param], backend="native")
    for _ in range(earlier_steps):
        optimizer.step()
    (param if of == "param" else param.grad).untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match=rf"{of}s\[0\] has no memory: its storage was freed"):
        optimizer.step()
