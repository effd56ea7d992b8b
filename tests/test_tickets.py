"""The tickets' experiment, small: the order the paper found, and a run that is cut short and goes on."""

import json
from dataclasses import asdict
from itertools import islice

import pytest
from typer.testing import CliRunner

from grokfused.lab import reproduce
from grokfused.lab.tickets import QUICK, THRESHOLD, Config, Run


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> dict[str, dict]:
    """Row -> what `grokfused reproduce tickets --quick` recorded of it.

    Of seed 1, whose dense run generalises in half of its epochs: that of seed 0 does in the last ones, or on
    another processor, which sums in another order, after them.
    """
    out = tmp_path_factory.mktemp("tickets")
    done = CliRunner().invoke(reproduce.app, ["tickets", "--quick", "--seeds", "1", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert (out / "tickets.png").read_bytes().startswith(b"\x89PNG")
    assert "Tickets generalise" in (out / "tickets.md").read_text()
    return {row["row"]: row for row in json.loads((out / "tickets.json").read_text())["rows"]}


@pytest.mark.slow
def test_a_ticket_generalises_in_a_third_of_the_dense_runs_epochs(quick) -> None:
    assert quick["dense"]["t_gen"] is not None
    assert 3 * quick["ticket"]["t_gen"] <= quick["dense"]["t_gen"]


@pytest.mark.slow
@pytest.mark.parametrize("row", ["random", "memorised"])
def test_other_masks_of_that_density_do_not(quick, row) -> None:
    assert quick[row]["t_mem"] is not None, "it has memorised"
    assert quick[row]["best_test"] < THRESHOLD
    assert quick[row]["last_epoch"] > quick["ticket"]["t_gen"]


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit() -> None:
    config = Config("random", 3, QUICK)
    whole, half, resumed = (Run(config, weights={}.__getitem__) for _ in range(3))
    expected = list(islice(whole.evaluations(), 4))
    got = list(islice(half.evaluations(), 2))
    resumed.load_state_dict(half.state_dict())
    got += islice(resumed.evaluations(), 2)
    assert [{**asdict(e), "seconds": 0} for e in got] == [{**asdict(e), "seconds": 0} for e in expected]
    mine, theirs = resumed.model.state_dict(), whole.model.state_dict()
    assert all(bool((mine[name] == theirs[name]).all()) for name in theirs)


def test_a_list_of_seeds_that_is_none_is_refused() -> None:
    done = CliRunner().invoke(reproduce.app, ["tickets", "--seeds", "0,one"])
    assert done.exit_code != 0
    assert "--seeds takes integers" in done.output
