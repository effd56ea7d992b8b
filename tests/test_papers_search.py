"""The search for settings: one that is cut short ends as one that is not."""

from pathlib import Path

import pytest

from grokfused.lab.papers import frame
from grokfused.lab.papers.watch import Interrupted, watching


@pytest.mark.parametrize("stop", [Interrupted, KeyboardInterrupt])
def test_a_search_that_was_cut_short_goes_on_with_the_very_trial(tmp_path, monkeypatch, stop) -> None:
    pytest.importorskip("optuna", reason="an extra: what searches settings")
    from grokfused.lab.papers import search

    def searched(folder: Path, cost) -> tuple[frame.Run, list[int]]:
        (tmp_path / folder).mkdir(exist_ok=True)
        asked: list[int] = []

        def counted(row, number: int) -> float:
            asked.append(number)
            return cost(row, number)

        with watching(tmp_path / folder, "cpu", [1.0]) as watch:
            try:
                return search.search("study", "ema", 14, counted, watch, 5), asked
            except (Interrupted, KeyboardInterrupt):
                return {}, asked

    def cost(row, number: int) -> float:
        return abs(row.weight_decay - 2.0) + row.lr

    def cut_short(row, number: int) -> float:
        if number in left:
            left.remove(number)
            raise stop
        return cost(row, number)

    left = [3, 12]  # among those that are drawn at random, and those that learn from the ones before
    whole, asked = searched(Path("whole"), cost)
    parts = [searched(Path("parts"), cut_short) for _ in range(3)]
    assert asked == [*range(14)]
    assert [number for _, asked in parts for number in asked] == [*range(4), *range(3, 13), *range(12, 14)]
    assert parts[-1][0] == whole
    assert len(whole["trials"]) == 14
    assert len({trial["lr"] for trial in whole["trials"]}) == 14
    (log,) = tmp_path.glob("parts/kept/*/trials.log")
    log.write_bytes(log.read_bytes()[:-9])  # as a kill may leave it, with the last trial's end
    assert searched(Path("parts"), cost) == (whole, [13])
    monkeypatch.setitem(search.SPACES["ema"], "lamb", (1.0, 2.0))
    assert searched(Path("whole"), cost)[1] == [*range(14)]  # other ranges: none of those trials
    first = {key: whole["trials"][0][key] for key in search.START}
    assert first == search.START
