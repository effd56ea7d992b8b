"""What runs are given: what is kept for others, checkpoints, and how long it will take."""

import pytest

from grokfused.lab.papers import watch as module
from grokfused.lab.papers.watch import NotKept, watching


def test_what_a_run_keeps_is_of_its_setting(tmp_path) -> None:
    settings = [{"steps": 10}, {"steps": 20}]
    for setting in settings:
        with watching(tmp_path, "cpu", [1.0], setting) as watch:
            watch.keep("weights", setting)
    for setting in settings:
        with watching(tmp_path, "cpu", [1.0], setting) as watch:
            assert watch.kept("weights") == setting
    with watching(tmp_path, "cpu", [1.0], {"steps": 30}) as watch, pytest.raises(NotKept):
        watch.kept("weights")


def test_a_checkpoint_of_another_run_is_not_taken(tmp_path) -> None:
    with watching(tmp_path, "cpu", [1.0]) as watch:
        watch.begin("one", {"row": "one"})
        watch.saved_at = 0.0
        watch.save("part", lambda: {"a": 1})
        assert watch.saved("part") == {"a": 1}
        assert watch.saved("other part") is None
        watch.begin("two", {"row": "two"})
        assert watch.saved("part") is None
        with pytest.raises(NotKept, match="which another row of its seed keeps"):
            watch.kept("nothing")


def test_the_time_that_is_left_counts_the_runs_of_this_start(tmp_path, monkeypatch, capsys) -> None:
    clock = iter(range(0, 10_000, 100))
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(clock)))
    said: list[str] = []
    monkeypatch.setattr(module, "say", said.append)
    monkeypatch.setattr(module, "SAVE_EVERY", 0.0)
    works = [1.0, 2.0, 2.0, 3.0]
    with watching(tmp_path, "cpu", works) as watch:  # at 0
        watch.end(skipped=True)
        watch.begin("seed 0, slow", {})  # at 100
        watch.show(0.5, "step 1")  # at 200: half of two in 200 seconds, and six are left
        watch.save("", dict)  # looks twice, and notes when
    with watching(tmp_path, "cpu", works) as watch:  # at 500
        watch.end(skipped=True)
        watch.begin("seed 0, slow", {})  # at 600
        watch.show(0.5, "step 1")  # at 700: nothing of it was done in this start
        watch.show(1.0, "step 2")  # at 800: half of two in 300 seconds, and five are left
    assert said == [
        "run 2 of 4, seed 0, slow: step 1; about 20 min left",
        "run 2 of 4, seed 0, slow: step 2; about 25 min left",
    ]


def test_the_seconds_of_a_run_count_those_before_it_was_cut_short(tmp_path, monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "process_time", lambda: now[0])
    with watching(tmp_path, "cpu", [1.0]) as watch:
        now[0] = 10.0
        watch.begin("one", {"row": "one"})
        watch.saved_at, now[0] = 0.0, 14.0
        watch.save("", dict)
    now[0] = 100.0
    with watching(tmp_path, "cpu", [1.0]) as watch:
        watch.begin("one", {"row": "one"})
        now[0] = 106.0
        assert watch.seconds() == 4.0 + 6.0
        watch.begin("two", {"row": "two"})
        assert watch.seconds() == 0
