"""What the bench writes: asked before anything is measured, and kept when Ctrl-C ends it."""

import errno
import json
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from grokfused.lab.bench import command, show
from grokfused.lab.bench.implementations import COPY, FUSED
from grokfused.lab.bench.rows import measure
from grokfused.lab.bench.sets import SETS, BenchSet
from grokfused.lab.cli import app

ROOT = Path(__file__).parent.parent
OPTIONS = ("--json", "--markdown", "--plot")


def run(*arguments: object):
    return CliRunner().invoke(app, ["bench", "steps", "--seconds", "0", *map(str, arguments)])


def options(folder: Path) -> list[str]:
    return [f"{option}={folder / option.strip('-')}" for option in OPTIONS]


@pytest.fixture
def interrupted_in(monkeypatch, ctrl_c):
    """Returns a function that lets Ctrl-C be pressed in the case of that number, of two small ones."""
    cases = {"first": [(9,), (3, 2)], "second": [(5,)]}
    monkeypatch.setitem(SETS, "steps", BenchSet("", cases, [FUSED, COPY]))

    def choose(number: int) -> None:
        def measured(case: str, *others):
            if case == list(cases)[number]:
                signal.raise_signal(signal.SIGINT)
            return measure(case, *others)

        monkeypatch.setattr(command, "measure", measured)

    return choose


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/", "Is a directory"),
        ("{tmp}", "Is a directory"),
        ("/proc/run", "No such file or directory"),
        ("{tmp}/missing/run", "No such file or directory"),
        ("{tmp}/file/run", "Not a directory"),
        ("{tmp}/" + 300 * "x", "File name too long"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(
    option, path, why, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(command, "measure", None)
    (tmp_path / "file").write_text("as it was")
    path = path.format(tmp=tmp_path)
    result = run(option, path)
    assert result.exit_code == 2
    assert result.stderr == f"grokfused: {path} cannot be written ({why}): name a file that can be\n"
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("file", "as it was")]


def test_ctrl_c_in_the_first_case_leaves_every_file_as_it_was(tmp_path, interrupted_in) -> None:
    old, link = tmp_path / "json", tmp_path / "plot"
    old.write_text("as it was")
    link.symlink_to(tmp_path / "elsewhere")
    interrupted_in(0)
    result = run(*options(tmp_path))
    assert result.exit_code == 130
    assert result.output.splitlines()[-1] == "interrupted in the first case; nothing was written"
    assert sorted(tmp_path.iterdir()) == [old, link]
    assert old.read_text() == "as it was"


def test_ctrl_c_later_keeps_the_cases_before(tmp_path, interrupted_in) -> None:
    interrupted_in(1)
    result = run(*options(tmp_path))
    assert result.exit_code == 130
    assert result.output.splitlines()[-1] == "interrupted; the cases above are complete, others are missing"
    rows = json.loads((tmp_path / "json").read_text())["rows"]
    assert [(row["case"], row["implementation"]) for row in rows] == [("first", FUSED), ("first", COPY)]
    assert (tmp_path / "markdown").read_text().count("| first |") == 2
    assert (tmp_path / "plot").read_bytes().startswith(b"\x89PNG")


def test_where_nobody_could_run_the_figure_is_refused_and_the_rest_is_written(tmp_path, monkeypatch) -> None:
    def absent(case, shapes, implementations, *_):
        about = {"case": case, "dtype": "float32", "elements": 9, "tensors": 1, "others": 0.0}
        return [{**about, "implementation": each.name, "why_not": "absent"} for each in implementations]

    monkeypatch.setattr(command, "measure", absent)
    result = run(*options(tmp_path))
    assert result.exit_code == 2
    assert "plot was not written: there is nothing to draw" in result.stderr
    assert {file.name for file in tmp_path.iterdir()} == {"json", "markdown"}


def test_what_looks_like_markup_is_shown_as_it_is(capsys) -> None:
    why = "pip install 'grokfused[bench]': shape [/5, 5]"
    show.print_table(
        Console(), "a [red] case", [{"implementation": "a peer", "why_not": why, "others": 0.0, "case": "a"}]
    )
    shown = capsys.readouterr().out
    assert why in shown
    assert "a [red] case" in shown


def test_one_case_of_two_sets_is_two_tables() -> None:
    about = {"case": "demo", "dtype": "float32", "elements": 5, "tensors": 1, "why_not": "absent"}
    titles = [title for title, _ in show.groups([{"set": name, **about} for name in ("steps", "clipping")])]
    assert titles == [f"{name} · demo: 5 elements in 1 tensors" for name in ("steps", "clipping")]


@pytest.mark.usefixtures("interrupted_in")
def test_a_disk_that_fills_while_it_is_measured_is_told(monkeypatch, tmp_path) -> None:
    def full(path, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    result = run(*options(tmp_path))
    assert result.exit_code == 2
    assert "json cannot be written (No space left on device): name a file" in result.stderr


@pytest.mark.slow
def test_pytest_benchmark_runs_groups_and_compares_the_suite(tmp_path, monkeypatch, capsys) -> None:
    comparison = pytest.importorskip("pytest_benchmark.cli")
    # A machine of `make gpu-check` has none. Asked for, as imported it would stay in every later import.
    if find_spec("pygal") is None:
        pytest.skip("pytest-benchmark draws histograms with the package pygal")
    path = tmp_path / "run.json"
    chosen = [f"bench/test_step.py::test_step[demo-{name}-float32]" for name in (FUSED, COPY)]
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen]
    run += [f"--benchmark-json={path}", f"--benchmark-histogram={tmp_path / 'histogram'}"]
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    shown = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True, env=alone).stdout
    assert "benchmark 'demo, float32': 2 tests" in shown
    assert len(list(tmp_path.glob("histogram*.svg"))) == 1
    found = json.loads(path.read_text())["benchmarks"]
    assert {bench["extra_info"]["bytes_per_element"] for bench in found} == {28, 8}
    monkeypatch.setattr(sys, "argv", ["pytest-benchmark", "compare", str(path), "--columns=median"])
    comparison.main()
    assert "benchmark 'demo, float32': 2 tests" in "".join(capsys.readouterr())
