"""The experiment of roundings: what its table says is what was run."""

import pytest
from typer.testing import CliRunner

from grokfused.lab import reproduce
from grokfused.lab.bench.traffic import traffic
from grokfused.lab.data import text_of
from grokfused.lab.papers import pages
from grokfused.lab.papers.rounding import QUICK, ROWS, Model
from grokfused.lab.papers.shown import rounding
from grokfused.lab.papers.table import PAPERS

TEXT = text_of(QUICK.held_out)


@pytest.fixture(autouse=True)
def one_thread(set_threads) -> None:
    set_threads(1)


@pytest.mark.slow
def test_a_quick_run_records_every_row_and_nearest_loses_what_the_others_keep(tmp_path) -> None:
    command = ["rounding", "--quick", "--seeds", "0", "--out", str(tmp_path)]
    done = CliRunner().invoke(reproduce.app, command)
    assert done.exit_code == 0, done.output
    record = pages.records_in(tmp_path, PAPERS)["rounding"]
    assert len(record["runs"]) == len(ROWS)
    (nearest,), (stochastic,), (kahan,) = (
        rounding.above(record, f"bfloat16, {how}") for how in rounding.ROUNDINGS
    )
    assert nearest > 5 * abs(stochastic)
    assert nearest > 50 * abs(kahan)
    page = (tmp_path / "rounding.md").read_text()
    assert all(
        f"| {name} | {row.held_bytes:.4g} | {row.moved_bytes:.4g} |" in page for name, row in ROWS.items()
    )


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_the_bytes_of_the_table_are_those_of_the_tensors(row) -> None:
    run = Model(row, 0, QUICK, TEXT)
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
    runs = [Model(row, 3, QUICK, TEXT) for row in ROWS.values()]
    firsts = [next(run.losses()) for run in runs]
    # Only the rounding of the first weights tells them apart.
    assert max(firsts) - min(firsts) < 0.01
    assert firsts[1] == firsts[2] == firsts[3]


def test_the_reading_says_where_seeds_disagree() -> None:
    runs = [
        {"row": name, "seed": seed, "loss": 1.0 - 0.25 * (row.what == "bfloat16, nearest")}
        for name, row in ROWS.items()
        for seed in (0, 1)
    ]
    found = rounding.verdict({"runs": runs})
    assert found.holds == "no"
    assert "-0.2500" in found.reading[0]
    assert "bfloat16, stochastic" in found.reading[1]
    assert "bfloat16, nearest" not in found.reading[1]
