"""The classes say what they take: every option stands in both signatures and docstrings, and they agree."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from stepping import ADAM, new_param, randn, ulps_of_the_largest

import grokfused
from grokfused import GrokAdam, GrokAdamW, compat, losses, pruning, schedules, scores
from grokfused.compat import gradfilter_ema
from grokfused.step.options import OPTIONS
from grokfused.step.scalars import Hyperparameters

CLASSES = (GrokAdam, GrokAdamW)
MODULES = (grokfused, schedules, pruning, scores, losses, compat)
# What `torch.optim` and the arithmetic of a step ask for, beside the table of options.
NUMBERS = {*Hyperparameters._fields, "max_grad_norm"}
OF_NO_GROUP = {"params", "unscales_grads", "unknown"}
ULPS = 8  # as in test_migration.py


def arguments(kind: type[torch.optim.Optimizer]) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(kind).parameters)


def documented(kind: type[torch.optim.Optimizer]) -> dict[str, str]:
    """The arguments of a docstring: name -> text, one line of blanks."""
    (section,) = re.findall(r"\nArgs:\n(.*?)\n\n\S", inspect.getdoc(kind) or "", re.DOTALL)
    found = re.findall(r"^ {4}(\w+): (.*?)(?=^ {4}\w|\Z)", section, re.MULTILINE | re.DOTALL)
    return {name: " ".join(text.split()) for name, text in found}


def test_the_two_signatures_differ_in_the_weight_decay_alone() -> None:
    adam, adamw = map(arguments, CLASSES)
    assert adam.pop("weight_decay").default == 0.0
    assert adamw.pop("weight_decay").default == 1e-2
    assert list(adam.values()) == list(adamw.values())


@pytest.mark.parametrize("kind", CLASSES)
def test_the_signature_is_the_table_of_options(kind) -> None:
    assert {*arguments(kind)} - OF_NO_GROUP == {*OPTIONS, *NUMBERS}


@pytest.mark.parametrize("kind", CLASSES)
def test_the_docstring_has_every_argument_with_its_default(kind) -> None:
    expected = {name: each for name, each in arguments(kind).items() if name != "unknown"}
    told = documented(kind)
    assert list(told) == list(expected)
    for name, argument in expected.items():
        if argument.default is not argument.empty:
            shown = re.search(r"\(default: (.*)\)$", told[name])[1]
            assert eval(shown, {"torch": torch}) == argument.default, name


@pytest.mark.parametrize("kind", CLASSES)
def test_it_is_equivalent_to_the_five_lines_of_its_docstring(kind) -> None:
    lines = re.search(r"Equivalent to .*?::\n\n(.*?)\n\n", inspect.getdoc(kind), re.DOTALL)[1].splitlines()
    assert len(lines) == 5
    once, every_step = ("\n".join(map(str.strip, part)) for part in (lines[:2], lines[2:]))
    models = [torch.nn.ParameterList([new_param(7, 3), new_param(5)]) for _ in range(2)]
    names: dict[str, Any] = {**ADAM, "torch": torch, "gradfilter_ema": gradfilter_ema, "model": models[0]}
    names |= {"alpha": 0.9, "lamb": 1.5}
    exec(once, names)
    ours = kind(models[1].parameters(), **ADAM, alpha=0.9, lamb=1.5)
    for step in range(30):

        def loss(model: Any, step: int = step) -> torch.Tensor:
            return sum((randn(*p.shape, seed=step) * p + p.square()).sum() for p in model)

        exec(every_step, {**names, "loss": loss, "optimizer": names["optimizer"]}, names)
        names["optimizer"].zero_grad()
        loss(models[1]).backward()
        ours.step()
        ours.zero_grad()
    differ = [ulps_of_the_largest(a.detach(), b.detach()) for a, b in zip(*models, strict=True)]
    assert max(differ) <= ULPS
    without = kind(models[0].parameters(), **ADAM, grad_filter="none")
    loss(models[0]).backward()
    without.step()
    assert max(ulps_of_the_largest(a.detach(), b.detach()) for a, b in zip(*models, strict=True)) > 1000


@pytest.mark.parametrize("module", MODULES, ids=lambda each: each.__name__)
def test_every_public_name_has_a_docstring_and_a_place_on_the_page(module) -> None:
    page = (Path(__file__).parent.parent / "docs" / "api.md").read_text()
    for name in module.__all__:
        found = getattr(module, name)
        if name != "__version__":
            assert f".. automodule:: {module.__name__}\n" in page or f":: {name}\n" in page, name
        if callable(found):
            assert inspect.getdoc(found), name
