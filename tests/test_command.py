"""The command as one meets it: what it says first, its examples, and whether it is fast here."""

import json
import shlex
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import grokfused
from grokfused.lab import cli, doctor
from grokfused.lab.bench import show
from grokfused.lab.bench.implementations import COPY, FUSED
from grokfused.lab.bench.sets import SETS, BenchSet
from grokfused.lab.bench.summary import sentence

ROOT = Path(__file__).parent.parent
APP = typer.main.get_command(cli.app)
COMMANDS = {
    **{(name,): command for name, command in APP.commands.items() if name != "reproduce"},
    **{("reproduce", name): command for name, command in APP.commands["reproduce"].commands.items()},
}


def said(*words: str, code: int = 0) -> str:
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == code, result.output
    return result.output


def test_alone_it_says_what_to_do_next() -> None:
    shown = said()
    assert shown.startswith(f"grokfused {grokfused.__version__}: ")
    for line in ("grokfused doctor", "grokfused grok", "from grokfused import GrokAdamW", "grokfused --help"):
        assert line in shown


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_help_has_an_example_that_the_command_takes(words) -> None:
    (example,) = [line.strip() for line in said(*words, "--help").splitlines() if "Example: " in line]
    program, *given = shlex.split(example.removeprefix("Example: "))
    assert program == "grokfused"
    assert tuple(given[: len(words)]) == words
    COMMANDS[words].make_context("grokfused", given[len(words) :])  # raises UsageError


def test_shells_can_complete_it() -> None:
    assert "--install-completion" in said("--help")


@pytest.fixture
def small(monkeypatch) -> None:
    monkeypatch.setitem(doctor.CASES, doctor.CASE, [(9,), (3, 2)])


@pytest.mark.usefixtures("small")
def test_the_doctor_says_what_runs_and_measures_it() -> None:
    shown = said("doctor", "--seconds", "0")
    assert "cpu: the native backend steps parameters" in shown
    assert "a step of GrokAdamW takes" in shown
    assert "of AdamW(fused=True)" in shown
    assert shown.splitlines()[-1].startswith("Yes")


@pytest.mark.usefixtures("small")
def test_the_doctor_says_why_it_is_slow(monkeypatch) -> None:
    facts = grokfused.info()
    backends = {"native": {"why_not": {"cpu": "c++: not found"}}, "reference": {"why_not": {}}}
    slow = facts | {"auto": {"cpu": "reference"}, "backends": backends}
    monkeypatch.setattr(doctor.grokfused, "info", lambda: slow)
    shown = said("doctor", "--seconds", "0", code=1)
    assert "native: c++: not found" in shown
    assert "a step of" not in shown
    assert shown.splitlines()[-1] == "Not on cpu: see the reasons above."


def test_the_doctor_names_threads_that_are_not_used(monkeypatch) -> None:
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda process: set(range(99)))
    assert any("torch.set_num_threads(99)" in line for line in doctor.processor_lines())


def test_a_case_is_summarised_from_its_rows() -> None:
    rows = json.loads((ROOT / "bench/results/cpu.json").read_text())["rows"]
    cases = show.groups([row for row in rows if (row["set"], row["case"]) == ("steps", "demo")])
    ((_, own),) = cases
    ours = next(row for row in own if row["implementation"] == "GrokAdamW")
    median = ours["times_longer_than"][FUSED]["median"]
    assert f"a step takes {median:.2f} of AdamW(fused=True)" in sentence(own)
    assert "authors' filter" in sentence(own)
    assert "authors' filter" not in sentence([ours])
    assert sentence([row for row in own if row is not ours]) is None


def test_the_bench_prints_the_summary_before_the_table(monkeypatch) -> None:
    monkeypatch.setitem(SETS, "steps", BenchSet("", {"tiny": [(9,)]}, ["GrokAdamW", FUSED, COPY]))
    lines = said("bench", "steps", "--seconds", "0").splitlines()
    assert lines[0].startswith("tiny (9 float32 parameters in 1 tensors): a step takes ")
    assert any(line.startswith("tiny: 9 elements") for line in lines[1:])
