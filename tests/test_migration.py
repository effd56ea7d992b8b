"""docs/migration.md is true: all arguments of the packages stand there, and become what it says."""

import ast
import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stepping import new_param, train, ulps_of_the_largest

from grokfused import GrokAdam, GrokAdamW, compat, layerwise_beta1
from grokfused.schedules import GrokkingSignal

PAGE = (Path(__file__).parent.parent / "docs" / "migration.md").read_text()
SECTIONS = dict(re.findall(r"^## From ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
SHAPES = ((7, 3), (5,), (4, 2, 2))
# Of the largest element, after 30 steps; measured: at most 4.5. Each rounds where the others do not.
ULPS = 8


def found_in(module: str, name: str) -> Any:
    return getattr(
        pytest.importorskip(module, reason=f"{module} is not installed (pip install '.[bench]')"), name
    )


CALLS: dict[str, tuple[str, str]] = {
    "torch.optim.AdamW": ("torch.optim", "AdamW"),
    "gradfilter_ema and an optimizer": ("grokfused.compat", "gradfilter_ema"),
    "gradfilter_ma and an optimizer": ("grokfused.compat", "gradfilter_ma"),
    "grokadamw": ("grokadamw", "GrokAdamW"),
    "grokfast-pytorch": ("grokfast_pytorch", "GrokFastAdamW"),
    "pytorch_optimizer": ("pytorch_optimizer", "GrokFastAdamW"),
}


def test_there_is_a_section_for_each() -> None:
    assert list(SECTIONS) == list(CALLS)


@pytest.mark.parametrize("section", CALLS)
def test_the_table_has_all_arguments_and_defaults_in_their_order(section) -> None:
    rows = re.findall(r"^\| `(\w+)(?:=([^`]+))?` \|", SECTIONS[section], re.MULTILINE)
    table = [
        (name, ast.literal_eval(default) if default else inspect.Parameter.empty) for name, default in rows
    ]
    arguments = inspect.signature(found_in(*CALLS[section])).parameters.values()
    assert table == [(each.name, each.default) for each in arguments if each.kind is not each.VAR_KEYWORD]


@pytest.mark.parametrize(
    ("section", "package"),
    [
        ("grokadamw", "grokadamw"),
        ("grokfast-pytorch", "grokfast-pytorch"),
        ("pytorch_optimizer", "pytorch_optimizer"),
    ],
)
def test_the_version_is_the_installed_one(section, package) -> None:
    found_in(*CALLS[section])
    (version,) = re.findall(r"^Version ([\d.]+\d)", SECTIONS[section], re.MULTILINE)
    assert version == importlib.metadata.version(package)


def differ(ours: Callable[[list[Any]], Any], theirs: Callable[[list[Any]], Any], steps: int = 30) -> float:
    """Returns the largest difference after steps on one stream of gradients, in units of the last place."""
    found = []
    for make in (ours, theirs):
        params = [new_param(*shape, seed=seed) for seed, shape in enumerate(SHAPES)]
        train(make(params), steps)
        found.append(params)
    return max(ulps_of_the_largest(a.detach(), b.detach()) for a, b in zip(*found, strict=True))


COMMON = {"betas": (0.87, 0.993), "eps": 1e-12}  # eps has another place in each
FILTER = {"alpha": 0.9, "lamb": 1.5}
THEIR_FILTER = {"grokfast_alpha": 0.9, "grokfast_lamb": 1.5}


class TestWhatItBecomes:
    def test_grokadamw(self, grokadamw) -> None:
        rate = {"grokking_signal_decay_rate": 0.5, "gradient_clipping": 0.0, "gamma": 0.0}

        def theirs(params: list[Any]) -> Any:
            optimizer = grokadamw(
                params, lr=1e-2, weight_decay=0.1, alpha_init=0.9, lamb=1.5, **rate, **COMMON
            )
            optimizer.param_groups[0].update(train_loss=1.0, eval_loss=3.0)
            return optimizer

        def ours(params: list[Any]) -> Any:
            groups = layerwise_beta1(params, 0.0, COMMON["betas"])
            options = {"lr": 1e-2, "weight_decay": 0.1, "eps": COMMON["eps"], "grad_ema_init": "zero"}
            optimizer = GrokAdamW(groups, **options, **FILTER)
            GrokkingSignal(optimizer, 0.5).update(1.0, 3.0)
            return optimizer

        with pytest.warns(Warning, match="autocast"):  # which it enters in each step
            assert differ(ours, theirs) <= ULPS

    @pytest.mark.parametrize("normalize", [True, False])
    def test_grokfast_pytorch(self, normalize) -> None:
        theirs = found_in("grokfast_pytorch", "GrokFastAdamW")
        lr = 1e-2 / 2.5 if normalize else 1e-2
        options = {"lr": 1e-2, "weight_decay": 0.03, "normalize_lr": normalize, **THEIR_FILTER, **COMMON}
        mine = {"lr": lr, "weight_decay": 0.03 / lr, **FILTER, **COMMON}
        assert (
            differ(lambda params: GrokAdamW(params, **mine), lambda params: theirs(params, **options)) <= ULPS
        )
        forgotten = {**mine, "weight_decay": 0.03}
        assert (
            differ(lambda params: GrokAdamW(params, **forgotten), lambda params: theirs(params, **options))
            > 1000
        )

    @pytest.mark.parametrize(
        ("kind", "given", "mine"),
        [
            (GrokAdamW, {}, {"lr": 1e-2 / 2.5, "weight_decay": 0.3}),
            (
                GrokAdamW,
                {"normalize_lr": False, "maximize": True},
                {"lr": 1e-2, "weight_decay": 0.3, "maximize": True},
            ),
            (GrokAdamW, {"fixed_decay": True}, {"lr": 1e-2 / 2.5, "weight_decay": 0.3 / (1e-2 / 2.5)}),
            (GrokAdam, {"weight_decouple": False, "weight_decay": 0.0}, {"lr": 1e-2 / 2.5}),
            (GrokAdamW, {"grokfast": False}, {"lr": 1e-2, "weight_decay": 0.3, "grad_filter": "none"}),
        ],
        ids=["as it is", "normalize_lr, maximize", "fixed_decay", "weight_decouple", "grokfast"],
    )
    def test_pytorch_optimizer(self, kind, given, mine) -> None:
        theirs = found_in("pytorch_optimizer", "GrokFastAdamW")
        options = {"lr": 1e-2, "weight_decay": 0.3, **THEIR_FILTER, **COMMON, **given}
        mine = {**FILTER, **COMMON, **mine}
        assert differ(lambda params: kind(params, **mine), lambda params: theirs(params, **options)) <= ULPS

    def test_a_late_filter(self) -> None:
        """grokfast_after_step of grokfast-pytorch."""
        theirs = found_in("grokfast_pytorch", "GrokFastAdamW")
        options = {"lr": 1e-2, "normalize_lr": False, "grokfast_after_step": 7, **THEIR_FILTER, **COMMON}

        class Late:
            def __init__(self, params: list[Any]) -> None:
                self.optimizer = GrokAdamW(
                    params, lr=1e-2, weight_decay=0.0, grad_filter="none", **FILTER, **COMMON
                )
                self.param_groups, self.taken = self.optimizer.param_groups, 0

            def step(self) -> None:
                if self.taken == 7:
                    self.param_groups[0]["grad_filter"] = "ema"
                self.optimizer.step()
                self.taken += 1

        assert differ(Late, lambda params: theirs(params, **options)) <= ULPS

    @pytest.mark.parametrize(
        ("function", "call", "mine"),
        [
            ("ema", {"alpha": 0.9, "lamb": 1.5}, FILTER),
            ("ma", {"window_size": 5, "lamb": 1.5}, {"window_size": 5}),
            (
                *("ma", {"window_size": 3, "filter_type": "sum", "warmup": False}),
                {"window_size": 3, "lamb": 5.0, "filter_type": "sum", "filter_warmup": False},
            ),
            (
                "ma, trigger in 7 steps",
                {"window_size": 3},
                {"window_size": 3, "lamb": 5.0, "filter_start_step": 7},
            ),
        ],
        ids=["ema", "ma", "ma, sum without warm-up", "ma, trigger"],
    )
    @pytest.mark.parametrize(("kind", "plain"), [(GrokAdamW, "AdamW"), (GrokAdam, "Adam")], ids=["W", "Adam"])
    def test_the_authors_functions_and_an_optimizer(self, kind, plain, function, call, mine) -> None:
        options = {"lr": 1e-2, "weight_decay": 0.1, **COMMON}

        class Filtered:
            def __init__(self, params: list[Any]) -> None:
                self.model = torch.nn.ParameterList(params)
                self.optimizer = getattr(torch.optim, plain)(self.model.parameters(), **options)
                self.param_groups, self.grads, self.taken = self.optimizer.param_groups, None, 0

            def step(self) -> None:
                held = {"trigger": self.taken < 7} if "trigger" in function else {}
                filtered = getattr(compat, f"gradfilter_{function.partition(',')[0]}")
                self.grads = filtered(self.model, self.grads, **call, **held)
                self.optimizer.step()
                self.taken += 1

        mine = {"lamb": 1.5, **mine, "grad_filter": "mean" if function.startswith("ma") else "ema"}
        assert differ(lambda params: kind(params, **options, **mine), Filtered) <= ULPS
