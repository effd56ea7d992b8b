"""The frame of the papers: runs that survive anything, and pages that are their records."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from grokfused import GrokAdamW
from grokfused.lab import reproduce
from grokfused.lab.papers import frame, pages, watch
from grokfused.lab.papers.frame import Experiment, Page, Paper, Size, Verdict
from grokfused.lab.papers.table import PAPERS
from grokfused.lab.papers.training import Batches, Training, crossings, curve, has_stayed
from grokfused.lab.papers.watch import Interrupted, Watch
from grokfused.lab.store import Store

DOCS = Path(__file__).parent.parent / "docs" / "papers"
FOLDER = Path(frame.__file__).parent


@pytest.fixture(autouse=True)
def one_thread(set_threads) -> None:
    set_threads(1)


@dataclass(frozen=True)
class Setting:
    steps: int = 12


class Row(NamedTuple):
    what: str
    lr: float = 1e-2


def training(lr: float = 1e-2) -> Training:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    inputs = torch.randn(10, 3)

    def loss(rows: torch.Tensor) -> torch.Tensor:
        noise = torch.rand(len(rows), 3)  # of torch's own stream: it has to be continued too
        return (model(inputs[rows]) - noise).square().mean()

    optimizer = GrokAdamW(model.parameters(), lr, grad_filter="mean", window_size=5)
    return Training(model, optimizer, Batches(10, 4, seed=1), loss, lambda update: 1 / (1 + update))


def run(name: str, seed: int, setting: Setting, watch: Watch) -> frame.Run:
    made = training(ROWS[name].lr)
    points = curve(made, watch, setting.steps, 2, lambda: {"weight": made.model.weight.norm().item()})
    return {"last": points[-1]["weight"], "points": [(point["step"], point["weight"]) for point in points]}


ROWS = {"slow": Row("slow", 1e-3), "fast": Row("fast, of course", 1e-1)}
TOY = Paper(
    "nd-loss",  # one that the table knows
    Experiment(ROWS, run, {"usual": Size(Setting(), tuple(ROWS), (0, 1), {"slow": 1})}),
    Page(
        columns=("row", "last"),
        cells=lambda record: [[found["row"], f"{found['last']:.6f}"] for found in record["runs"]],
        verdict=lambda record: Verdict("in part", "2x", ["one", "two"]),
        draw=lambda record, figure: figure.add_subplot().plot([1, 2]),
    ),
)
USUAL = TOY.experiment.sizes["usual"]


def measured(record: frame.Record) -> list[dict]:
    clocks = ("seconds", "commit")
    return [{key: value for key, value in found.items() if key not in clocks} for found in record["runs"]]


def test_a_row_can_be_of_the_first_seeds_only(tmp_path) -> None:
    record = frame.perform(TOY, USUAL, (3, 5), tmp_path)
    assert [(found["seed"], found["row"]) for found in record["runs"]] == [
        (3, "slow"),
        (3, "fast"),
        (5, "fast"),
    ]


def test_what_is_there_is_not_run_again_unless_its_row_or_the_setting_changed(tmp_path, monkeypatch) -> None:
    first = frame.perform(TOY, USUAL, (0,), tmp_path)
    calls = []
    counting = TOY.experiment._replace(run=lambda *given: calls.append(given[0]) or {"last": 0})
    counted = TOY._replace(experiment=counting)
    assert frame.perform(counted, USUAL, (0,), tmp_path)["runs"] == first["runs"]
    assert calls == []
    monkeypatch.setitem(ROWS, "slow", Row("slow", 2e-3))
    frame.perform(counted, USUAL, (0,), tmp_path)
    assert calls == ["slow"]
    frame.perform(counted, USUAL._replace(setting=Setting(steps=4)), (0,), tmp_path)
    assert calls == ["slow", "slow", "fast"]


def test_an_interrupted_experiment_goes_on_to_what_an_uninterrupted_one_measures(
    tmp_path, monkeypatch
) -> None:
    whole = frame.perform(TOY, USUAL, (0, 1), tmp_path / "whole")
    shows = iter(range(100))
    show = Watch.show

    def pressing(watch: Watch, share: float, note: str) -> None:
        show(watch, share, note)
        now = next(shows) in (2, 9)  # in the first run, and in the second
        watch.interrupted = lambda: now

    monkeypatch.setattr(Watch, "show", pressing)
    for _ in range(2):
        with pytest.raises(Interrupted):
            frame.perform(TOY, USUAL, (0, 1), tmp_path / "cut")
    record = frame.perform(TOY, USUAL, (0, 1), tmp_path / "cut")
    assert measured(record) == measured(whole)


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import test_papers
from pathlib import Path
from grokfused.lab.papers import frame, watch
watch.SAVE_EVERY = 0.0
show, shown = watch.Watch.show, []
def dying(self, share, note):
    shown.append(share)
    if len(shown) == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    show(self, share, note)
watch.Watch.show = dying
frame.perform(test_papers.TOY, test_papers.USUAL, (0, 1), Path(sys.argv[2]))
"""


def test_a_killed_experiment_goes_on_from_its_checkpoint(tmp_path) -> None:
    out = tmp_path / "cut"
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run(command, env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(Store(out / "runs.jsonl", USUAL.setting).runs) == 1
    assert torch.load(out / "checkpoint.pt")["key"]["row"] == "fast"
    with (out / "runs.jsonl").open("a") as file:
        file.write('{"row": "fa')  # as a kill may leave it
    record = frame.perform(TOY, USUAL, (0, 1), out)
    assert measured(record) == measured(frame.perform(TOY, USUAL, (0, 1), tmp_path / "whole"))


def test_crossings_are_the_first_look_above_and_the_first_from_which_all_are() -> None:
    points = [{"step": 10 * at, "a": value} for at, value in enumerate([0.1, 0.9, 0.3, 0.9, 1.0], 1)]
    assert crossings(points, "a", 0.9) == (20, 40)
    assert crossings(points, "a", 0.95) == (50, 50)
    assert crossings(points[:3], "a", 0.9) == (20, None)
    assert crossings(points, "a", 2) == (None, None)
    enough = has_stayed("a", 0.9, 20)
    assert [enough(points[:count]) for count in range(1, 6)] == [False, False, False, True, True]


def test_batches_show_each_row_once_an_epoch_and_go_on_where_they_were() -> None:
    batches = Batches(10, 4, seed=3)
    epoch = [batches.next() for _ in range(3)]
    assert [len(rows) for rows in epoch] == [4, 4, 2]
    assert sorted(torch.cat(epoch).tolist()) == list(range(10))
    batches.next()
    state, after = batches.state_dict(), batches.next()
    again = Batches(10, 4, seed=0)
    again.load_state_dict(state)
    assert torch.equal(again.next(), after)
    assert Batches(5, 0, seed=0).next().tolist() == [0, 1, 2, 3, 4]


def test_a_spread_says_how_many_are_missing() -> None:
    assert pages.spread([3, 1, 2000]) == "3 (1 to 2,000)"
    assert pages.spread([0.5], 2) == "0.50"
    assert pages.spread([4, None, 2]) == "3 (2 to 4), 2 of 3"
    assert pages.spread([None, None]) == "0 of 2"


def test_a_page_names_command_commit_machine_and_seeds_and_no_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["grokfused", "reproduce", "nd-loss", "--out", str(tmp_path)])
    record = frame.perform(TOY, USUAL, (0, 1), tmp_path)
    record["setting"] = PAPERS["nd-loss"].experiment.sizes["usual"].setting.__dict__
    page = pages.markdown(TOY, record)
    for told in (
        "\ngrokfused reproduce nd-loss\n",
        record["commit"],
        record["cpu"],
        "1 thread",
        "seeds 0, 1",
    ):
        assert told in page
    assert str(tmp_path) not in json.dumps(record)
    pages.write(TOY, record, tmp_path)
    assert (tmp_path / "nd-loss.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "nd-loss.json").read_text()) == json.loads(json.dumps(record))
    assert "| in part | 2x | 2 |" in pages.index({"nd-loss": TOY}, {"nd-loss": record})


RECORDS = pages.records_in(DOCS, PAPERS)


@pytest.mark.parametrize("name", RECORDS)
def test_a_page_in_the_documents_is_its_record(name) -> None:
    record = RECORDS[name]
    assert (DOCS / f"{name}.md").read_text() == pages.markdown(PAPERS[name], record)
    assert (DOCS / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert not re.search(r"/(tmp|work|home)/", json.dumps(record))
    seeds = {run["seed"] for run in record["runs"]}
    assert len(seeds) >= (5 if name in ("nd-loss", "grokfast") else 3)


def test_the_index_is_made_of_the_records() -> None:
    assert (DOCS / "index.md").read_text() == pages.index(PAPERS, RECORDS)


@pytest.mark.parametrize("name", PAPERS)
def test_a_command_exists_for_every_paper_and_its_page_says_what_was_run(name) -> None:
    done = CliRunner().invoke(reproduce.app, [name, "--help"])
    assert done.exit_code == 0
    paper = PAPERS[name]
    for size in paper.experiment.sizes.values():
        assert set(size.rows) <= set(paper.experiment.rows)
        assert "{" not in paper.about.ran.format(**asdict(size.setting))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--seeds", "0,one"], "--seeds takes integers"),
        (["--seeds", "1,1"], "--seeds takes different integers"),
        (["--device", "abacus"], "--device abacus cannot be used"),
        (["--quick", "--full"], "contradict each other"),
        (["--rows", "ema,emma"], "--rows has emma; there are none, ema"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(arguments, told, tmp_path) -> None:
    done = CliRunner().invoke(reproduce.app, ["why", *arguments, "--out", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert told in " ".join(done.output.split())
    assert not (tmp_path / "out").exists()


def test_ctrl_c_ends_the_command_with_its_usual_status_and_the_same_command_goes_on(
    tmp_path, monkeypatch
) -> None:
    sizes = PAPERS["why"].experiment.sizes
    monkeypatch.setitem(sizes, "quick", sizes["quick"]._replace(rows=("none",)))
    monkeypatch.setattr(watch, "SAVE_EVERY", 0.0)
    show = Watch.show

    def pressing(watch: Watch, share: float, note: str) -> None:
        show(watch, share, note)
        os.kill(os.getpid(), signal.SIGINT)

    command = ["why", "--quick", "--out", str(tmp_path)]
    with monkeypatch.context() as pressed:
        pressed.setattr(Watch, "show", pressing)
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        done = CliRunner().invoke(reproduce.app, command)
        signal.signal(signal.SIGINT, before)
    assert done.exit_code == 130
    assert "interrupted; the same command continues" in done.output
    assert torch.load(tmp_path / "checkpoint.pt")["state"]["training"]["steps"] == 100
    assert not (tmp_path / "why.md").exists()


@pytest.mark.parametrize(
    "path", [*FOLDER.glob("[a-z]*.py"), *FOLDER.glob("shown/*.py")], ids=lambda p: p.stem
)
def test_a_papers_file_can_be_read_at_once(path) -> None:
    frame_of_all = {"frame", "training", "pages", "networks", "watch"}
    assert len(path.read_text().splitlines()) < 150 or path.stem in frame_of_all
