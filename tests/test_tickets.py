"""The tickets' experiment, small: the order the paper found."""

import pytest
from typer.testing import CliRunner

from grokfused.lab import reproduce
from grokfused.lab.papers import pages, problems
from grokfused.lab.papers.table import PAPERS


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> dict[str, dict]:
    """Kind of row -> what `grokfused reproduce tickets --quick` recorded of it."""
    out = tmp_path_factory.mktemp("tickets")
    done = CliRunner().invoke(reproduce.app, ["tickets", "--quick", "--seeds", "1", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert (out / "tickets.png").read_bytes().startswith(b"\x89PNG")
    record = pages.records_in(out, PAPERS)["tickets"]
    return {run["row"].removeprefix("small-"): run for run in record["runs"]}


@pytest.mark.slow
def test_a_ticket_generalises_in_half_of_the_dense_runs_steps(quick) -> None:
    assert quick["dense"]["t_gen"] is not None
    assert 2 * quick["ticket"]["t_gen"] <= quick["dense"]["t_gen"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["random", "memorised"])
def test_other_masks_of_that_density_do_not(quick, kind) -> None:
    assert quick[kind]["t_mem"] is not None, "it has memorised"
    assert quick[kind]["best"] < problems.MLP_31.threshold
    assert quick[kind]["last"] > 2 * quick["ticket"]["t_gen"]


@pytest.mark.slow
def test_masks_stop_moving_once_the_dense_network_has_generalised(quick) -> None:
    moved = [distance for _, distance in quick["dense"]["moved"]]
    assert moved[-1] < moved[0] / 2
