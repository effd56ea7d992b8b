"""The experiment of roundings: what its table says is what was run, and the page is its record."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from grokfused.lab import reproduce, rounding_report
from grokfused.lab.bench.traffic import traffic
from grokfused.lab.data import text_of
from grokfused.lab.rounding import QUICK, ROWS, Run

DOCS = Path(__file__).parent.parent / "docs"
TEXT = text_of(QUICK.held_out)


@pytest.fixture(autouse=True)
def one_thread():
    """The command sets how many there are."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_a_quick_run_records_every_row_and_nearest_loses_what_the_others_keep(tmp_path) -> None:
    command = ["rounding", "--quick", "--seeds", "0", "--out", str(tmp_path)]
    done = CliRunner().invoke(reproduce.app, command)
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "rounding.json").read_text())
    assert len(record["runs"]) == len(ROWS)
    (nearest,), (stochastic,), (kahan,) = (rounding_report.above(record, row) for row in ROWS[1:4])
    assert nearest > 5 * abs(stochastic)
    assert nearest > 50 * abs(kahan)
    page = (tmp_path / "rounding.md").read_text()
    assert page == rounding_report.markdown(record)
    assert all(f"| {row.name} | {row.held_bytes:.4g} | {row.moved_bytes:.4g} |" in page for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_bytes_of_the_table_are_those_of_the_tensors(row) -> None:
    run = Run(row, 0, QUICK, TEXT)
    next(run.losses())
    tensors = list(run.stored)
    for state in run.optimizer.state.values():
        tensors += [tensor for name, tensor in state.items() if name != "step"]
    count = sum(param.numel() for param in run.stored)
    taken = sum(tensor.nbytes for tensor in tensors)  # the last block of a tensor may have fewer elements
    assert 0 <= taken - row.held_bytes * count < 4 * len(run.stored)
    options = {"grad_filter": "none", "state_dtype": row.state_dtype, "param_rounding": row.param_rounding}
    assert row.moved_bytes == traffic(options, row.param_dtype).total


def test_rows_of_a_seed_begin_alike() -> None:
    runs = [Run(row, 3, QUICK, TEXT) for row in ROWS]
    firsts = [next(run.losses()) for run in runs]
    # Only the rounding of the first weights tells them apart.
    assert max(firsts) - min(firsts) < 0.01
    assert firsts[1] == firsts[2] == firsts[3]


def test_the_page_is_its_record() -> None:
    record = json.loads((DOCS / "rounding.json").read_text())
    assert (DOCS / "rounding.md").read_text() == rounding_report.markdown(record)
    assert {run["seed"] for run in record["runs"]} == {0, 1, 2}


def test_the_reading_names_no_share_of_a_loss_that_is_none() -> None:
    runs = [{**row.options(), "seed": seed, "held_out_loss": 1.0} for row in ROWS for seed in (0, 1)]
    for run in runs:
        run["held_out_loss"] -= 0.25 * (
            run["param_rounding"] == "nearest" and run["param_dtype"] != "float32"
        )
    said = "\n".join(rounding_report.reading({"runs": runs}))
    assert "-0.2500" in said
    assert "%" not in said
    assert "disagree" in said
