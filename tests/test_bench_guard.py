"""The guard that compares two commits: what it calls slower, and that its workers step what they are told."""

from pathlib import Path

import pytest

from bench import guard
from bench.guard import Case, Spread, Worker, times, verdict

ROOT = Path(__file__).parent.parent
SMALL = Case([(33, 7), (5,)], {"state_dtype": "bfloat16", "lr": 2e-3}, density=0.5, layout="rows")


@pytest.mark.parametrize(
    ("again", "new", "slower"),
    [
        ([1.0, 1.0, 1.0, 1.0], 1.04, False),
        ([1.0, 1.0, 1.0, 1.0], 1.06, True),
        ([1.1, 1.1, 1.1, 1.1], 1.14, False),  # the base is as far from itself
        ([1.1, 1.1, 1.1, 1.1], 1.16, True),
        ([0.9, 0.9, 0.9, 0.9], 1.14, False),
        ([1.0, 1.0, 1.0, 1.0], 0.5, False),
    ],
)
def test_slower_is_what_exceeds_noise_and_five_percent(again, new, slower) -> None:
    base = [1e-3, 2e-3, 4e-3, 1e-3]  # a drift that hits all alike
    found = verdict(
        base, *([a * b for a, b in zip(base, factors, strict=True)] for factors in (again, [new] * 4))
    )
    assert found.slower is slower
    assert found.ratio == pytest.approx(Spread(new, new, new))  # the quotients are rounded


@pytest.mark.slow
def test_workers_take_turns_on_the_code_of_their_folder() -> None:
    found = times(SMALL, [ROOT, ROOT], seconds=0.0)
    assert [len(taken) for taken in found] == [5, 5]
    assert all(value > 0 for taken in found for value in taken)


@pytest.mark.slow
def test_what_a_commit_cannot_do_is_said() -> None:
    with pytest.raises(RuntimeError, match="TypeError: unexpected keyword argument 'no_option'"):
        times(Case([(3,)], {"no_option": 1}), [ROOT], seconds=0.0)


@pytest.mark.parametrize(("who", "exit_code"), [("new", 1), ("base", 0)])
def test_a_case_that_only_the_new_commit_cannot_do_is_lost(monkeypatch, who, exit_code) -> None:
    def compared(case, base, new, *_) -> guard.Verdict:
        if case is guard.GUARDED["demo"]:
            raise guard.CannotStep({"base": base, "new": new}[who], "no such option")
        return verdict([1.0, 1.0], [1.0, 1.0], [1.0, 1.0])

    monkeypatch.setattr(guard, "built", Path)
    monkeypatch.setattr(guard, "compared", compared)
    with pytest.raises(guard.typer.Exit) as ended:
        guard.main("old", "young", 0.0, 1)
    assert ended.value.exit_code == exit_code


@pytest.mark.slow
def test_a_worker_that_imports_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"imported .* instead"):
        Worker(tmp_path)


def test_an_unknown_commit_is_refused() -> None:
    with pytest.raises(guard.typer.BadParameter, match="'no-such-commit' is no commit"):
        guard.built("no-such-commit")
