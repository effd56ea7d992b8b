"""Searches for an optimizer's settings: optuna's, every trial kept in a file beside the runs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from grokfused.lab.papers.cells import Row
from grokfused.lab.papers.frame import Run
from grokfused.lab.papers.watch import Watch
from grokfused.lab.store import short_name, whole_lines

# Name -> smallest and largest, searched on a logarithmic scale; ``slow`` is 1 - alpha, ``fresh`` 1 - beta1.
PLAIN = {"lr": (5e-4, 3e-2), "weight_decay": (0.3, 6.0), "fresh": (0.02, 0.3)}
FILTERED = {**PLAIN, "slow": (0.01, 0.5), "lamb": (0.03, 5.0)}
SPACES = {"none": PLAIN, "ema": FILTERED}
# What is tried first: the best of the rows that nobody searched, AdamW with decay 2 and EMA(0.9, 1).
START = {"lr": 1e-3, "weight_decay": 2.0, "fresh": 0.1, "slow": 0.1, "lamb": 1.0}


def needs() -> None:
    """Raises ImportError where optuna is missing; the message says what to install."""
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        how = "pip install 'grokfused[papers]' (missing: optuna)"
        raise ImportError(f"settings are searched with optuna: {how}") from error


def row_of(found: Mapping[str, float], grad_filter: str) -> Row:
    """Returns the optimizer of a trial's numbers."""
    shown = f"AdamW, lr {found['lr']:.2g}, decay {found['weight_decay']:.2g}, beta1 {1 - found['fresh']:.3f}"
    if grad_filter == "none":
        return Row(shown, found["weight_decay"], lr=found["lr"], beta1=1 - found["fresh"])
    alpha, lamb = 1 - found["slow"], found["lamb"]
    shown += f", EMA({alpha:.3f}, {lamb:.2g})"
    decay = found["weight_decay"]
    return Row(shown, decay, False, grad_filter, alpha, lamb, lr=found["lr"], beta1=1 - found["fresh"])


def _study(name: str, folder: Path) -> Any:
    """Returns optuna's study of that name as it stands in the folder; a new one where there is none."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "trials.log"
    whole_lines(log)  # optuna could not read a line that a kill cut short
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # optuna's, of what is experimental
        storage = JournalStorage(JournalFileBackend(str(log)))
        study = optuna.create_study(storage=storage, study_name=name, load_if_exists=True)
    for killed in study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.RUNNING]):
        study.tell(killed.number, state=optuna.trial.TrialState.FAIL)  # the sampler would look at it
    return study


def search(
    name: str, grad_filter: str, trials: int, cost: Callable[[Row, int], float], watch: Watch, seed: int
) -> Run:
    """Searches from ``START``, and keeps the best numbers for other rows.

    It goes on from the trials in ``trials.log``, those of the same setting, ranges and seed.

    Args:
        name: Of the study, and of what is kept.
        grad_filter: "none" or "ema": what is searched.
        trials: How many, with those that are there already.
        cost: (optimizer, number of the trial) -> what is to be small. A trial that was cut short is tried
            again under its number.
        watch: Shows how far it is.
        seed: Of the first trial's sampler; the next ones have the next.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = _study(f"{name}-{short_name([SPACES[grad_filter], START, seed])}", watch.kept_in)

    def objective(trial: Any) -> float:
        drawn = {
            key: trial.suggest_float(key, low, high, log=True)
            for key, (low, high) in SPACES[grad_filter].items()
        }
        return cost(row_of(drawn, grad_filter), count)

    while (count := sum(trial.value is not None for trial in study.trials)) < trials:
        watch.span = count / trials, 1 / trials
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # One for each: a search that was cut short draws what it would have drawn.
            sampler = optuna.samplers.TPESampler(seed=seed + count, multivariate=True)
            fixed = optuna.samplers.PartialFixedSampler
            study.sampler = sampler if count else fixed(START, sampler)
        study.optimize(objective, n_trials=1)
        watch.show(1.0, f"trial {count + 1} of {trials}, best {study.best_value:,.0f}")
        watch.save(name, dict)
    watch.keep(name, dict(study.best_params))
    tried = [{**trial.params, "cost": trial.value} for trial in study.trials if trial.value is not None]
    return {"found": dict(study.best_params), "cost": study.best_value, "trials": tried}
