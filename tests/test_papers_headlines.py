"""Each paper in its quick size: the direction of its headline, or, where that fails here, that it does."""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from grokfused.lab import reproduce
from grokfused.lab.papers import pages
from grokfused.lab.papers.cells import mean_of
from grokfused.lab.papers.frame import runs_of
from grokfused.lab.papers.shown import grokfast, shiftquant
from grokfused.lab.papers.table import PAPERS

Record = dict[str, Any]
pytestmark = pytest.mark.slow


def quick(name: str, out: Path, *arguments: str) -> Record:
    """Returns what ``grokfused reproduce NAME --quick`` recorded."""
    try:
        PAPERS[name].experiment.needs()
    except ImportError as error:
        # Data that an extra brings: `make test` installs it, a bare machine has none.
        pytest.skip(str(error))
    done = CliRunner().invoke(reproduce.app, [name, "--quick", "--out", str(out), *arguments])
    assert done.exit_code == 0, done.output
    record: Record = pages.records_in(out, {name: PAPERS[name]})[name]
    assert (out / f"{name}.md").read_text() == pages.markdown(PAPERS[name], record)
    assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    return record


def mnist(record: Record) -> None:
    """The decay speeds grokking up, and the filter beside it is worth nothing."""
    decay, both = (mean_of(record, row, "first") for row in ("high", "high-ema"))
    assert decay <= record["setting"]["steps"] / 1.5
    assert mean_of(record, "low", "best") < 0.5
    assert decay / both < 1.5


def lstm(record: Record) -> None:
    """The filter is worth none of the six points that the change of both brought in the paper."""
    assert mean_of(record, "high-ema", "best") - mean_of(record, "high", "best") < 0.06


def graph(record: Record) -> None:
    """The error falls by less than the paper's factor of 1.89."""
    assert mean_of(record, "low", "best") / mean_of(record, "high-ema", "best") < 1.5


def data_diet(record: Record) -> None:
    """With little data the hardest half is worse than a random one; wrong labels are hard ones."""
    for data in ("digits", "reviews"):
        hardest, random = (mean_of(record, f"{data}-{kind}", "0.5") for kind in ("el2n", "random"))
        assert hardest < random - 0.03
    assert mean_of(record, "digits-el2n", "noise") > 0.9


def nd_loss(record: Record) -> None:
    """Features turn to their class's direction; accuracy does not rise by what the paper has."""
    for more, with_term in zip(runs_of(record, "kd"), runs_of(record, "kd++"), strict=True):
        assert with_term["direction"] > more["direction"] + 0.05
        assert with_term["norm"] > 1.2 * more["norm"]
    assert mean_of(record, "kd++", "accuracy") - mean_of(record, "kd", "accuracy") < 0.025


def shift_quantisation(record: Record) -> None:
    """Shifts are as good as float scales of the same groups, and much better than one scale."""
    error = {
        scales: statistics.mean(shiftquant.error_at(record, "images", "gradients", scales))
        for scales in ("per tensor", "shifts", "float groups")
    }
    assert error["shifts"] < 1.15 * error["float groups"]
    assert error["shifts"] < 0.7 * error["per tensor"]
    assert mean_of(record, "float", "accuracy") - mean_of(record, "6", "accuracy") < 0.03


def ln_tuning(record: Record) -> None:
    """LayerNorms are a few per cent of the parameters; here they do not equal full fine-tuning."""
    share = runs_of(record, "ln")[0]["tuned"] / runs_of(record, "full")[0]["tuned"]
    assert share < 0.1
    probe, norms, full = (mean_of(record, row, "shifted") for row in ("probe", "ln", "full"))
    assert probe - 0.02 < norms < full - 0.05


def why(record: Record) -> None:
    """Features lose rank from memorising to generalising; the gradient stream turns slow."""
    for row in ("none", "ema"):
        (run,) = runs_of(record, row)
        begin, end = (
            next(point for point in run["points"] if point["step"] == run[when])
            for when in ("memorised", "generalised")
        )
        assert end["rank"] < 0.95 * begin["rank"]
        assert end["slow"] > begin["slow"] + 0.05


def grokking_fast(record: Record) -> None:
    """Where AdamW is searched as the filter is, nothing like the published factor is left."""
    assert mean_of(record, "add-best-none", "first") < record["setting"]["add_steps"]
    assert grokfast.factor(record, "add-best-none", "add-best-ema") < 3


HEADLINES: dict[str, Callable[[Record], None]] = {
    "mnist": mnist,
    "lstm": lstm,
    "graph": graph,
    "data-diet": data_diet,
    "nd-loss": nd_loss,
    "shiftquant": shift_quantisation,
    "ln-tuning": ln_tuning,
    "why": why,
    "grokfast": grokking_fast,
}
ELSEWHERE = {"tickets", "rounding"}  # test_tickets.py, test_rounding_experiment.py


def test_every_paper_has_a_headline() -> None:
    assert set(HEADLINES) | ELSEWHERE == set(PAPERS)


@pytest.mark.parametrize("name", HEADLINES)
def test_the_headline(name, tmp_path, set_threads) -> None:
    set_threads(1)
    HEADLINES[name](quick(name, tmp_path))
