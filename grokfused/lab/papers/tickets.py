"""Grokking tickets (arXiv:2310.19470): the largest weights of a network that generalises, trained anew."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from torch import nn

from grokfused import GrokAdamW
from grokfused.lab.addition import loss_of
from grokfused.lab.data import digits
from grokfused.lab.papers import problems
from grokfused.lab.papers.frame import Paper, Record, Run, Size, Verdict, Watch, rows_in, runs_of
from grokfused.lab.papers.pages import spread
from grokfused.lab.papers.problems import Net, Problem, State, problem_of
from grokfused.lab.papers.training import Batches, Training, crossings, curve, has_stayed
from grokfused.pruning import Ticket, find_masks, find_ticket, jaccard_distance

MASKS = 20  # snapshots of a dense run, between which the movement of its masks is measured


@dataclass(frozen=True)
class Setting:
    """What all runs share: the density of tickets, and the networks."""

    density: float = 0.4
    mlp: Net = problems.MLP_67
    small: Net = problems.MLP_31
    transformer: Net = problems.TRANSFORMER
    mnist: Net = problems.DIGITS


class Row(NamedTuple):
    """How a run differs from its dense network's: in masks, in the norm at the beginning, in decay."""

    what: str
    net: str
    masks: str = ""  # "generalised" or "memorised" weights pruned by magnitude, or a score at the beginning
    norm: int = 0  # dense, but with the ticket's L1 or L2 norm
    decayed: bool = True
    density: float = 0.0  # 0: the setting's


KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("the dense network", {}),
    "ticket": ("ticket: largest weights after generalisation", {"masks": "generalised"}),
    "random": ("random masks", {"masks": "random"}),
    "memorised": ("ticket: largest weights when only memorised", {"masks": "memorised"}),
    "dense-l2": ("dense, with the ticket's L2 norm", {"norm": 2}),
    "dense-l1": ("dense, with the ticket's L1 norm", {"norm": 1}),
    "snip": ("SNIP at initialisation", {"masks": "snip"}),
    "grasp": ("GraSP at initialisation", {"masks": "grasp"}),
    "synflow": ("SynFlow at initialisation, 100 rounds", {"masks": "synflow"}),
    "ticket-no-decay": ("ticket, weight decay 0", {"masks": "generalised", "decayed": False}),
    "ticket-81": (
        "ticket of 19 %, weight decay 0",
        {"masks": "generalised", "decayed": False, "density": 0.19},
    ),
    "dense-no-decay": ("dense, weight decay 0", {"decayed": False}),
}
FIRST = tuple(KINDS)[:4]
NETS = {
    "mlp": tuple(kind for kind in KINDS if kind != "ticket-81"),
    "small": tuple(KINDS),
    "transformer": FIRST,
    "mnist": FIRST,
}
ROWS = {
    f"{net}-{kind}": Row(f"{net}: {KINDS[kind][0]}", net, **KINDS[kind][1])
    for net, kinds in NETS.items()
    for kind in kinds
}


def begin(problem: Problem, row: Row, net: Net, seed: int, setting: Setting, watch: Watch) -> State:
    """Puts the model where the row begins, and returns its masks."""
    model, density = problem.model, row.density or setting.density
    initial = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if row.norm or row.masks in ("generalised", "memorised"):
        step = net.memorised if row.masks == "memorised" else net.dense
        model.load_state_dict(watch.kept(f"{row.net}-{seed}-{step}"))
        ticket = find_ticket(model, initial, density)
        if row.norm:
            ticket.rewind_dense(model, row.norm)
            return {}
    elif row.masks:
        how: dict[str, Any] = {"seed": seed} if row.masks == "random" else {}
        ticket = Ticket(find_masks(model, row.masks, density, loss_of, problem.batches, **how), initial)
    else:
        return {}
    ticket.rewind(model)
    return ticket.masks


def run(name: str, seed: int, setting: Setting, watch: Watch) -> Run:
    """Trains one network; a dense one goes on after it has generalised, for its ticket's sake."""
    row, dense = ROWS[name], name.endswith("-dense")
    net: Net = getattr(setting, row.net)
    problem = problem_of(row.net, net, seed, watch.device)
    masks = begin(problem, row, net, seed, setting, watch)
    optimizer = GrokAdamW(
        problem.model.named_parameters(),
        net.lr,
        betas=(0.9, 0.98),
        weight_decay=net.weight_decay if row.decayed else 0.0,
        grad_filter="none",
    )
    optimizer.set_masks(masks)
    training = Training(
        problem.model, optimizer, Batches(problem.count, net.batch, seed, watch.device), problem.loss
    )
    snapshots = {net.memorised, *(net.dense * number // MASKS for number in range(1, MASKS + 1))}

    def measure() -> Run:
        if dense and training.steps in snapshots:
            watch.keep(f"{row.net}-{seed}-{training.steps}", problem.model.state_dict())
        return problem.measure()

    enough = has_stayed("test", net.threshold, net.dense if dense else 0)
    points = curve(training, watch, net.dense if dense else net.budget, net.every, measure, enough)
    (memorised, _), (generalised, stable) = (
        crossings(points, each, net.threshold) for each in ("train", "test")
    )
    found: Run = {"t_mem": memorised, "t_gen": generalised, "stable": stable, "last": points[-1]["step"]}
    found["best"] = max(point["test"] for point in points)
    if dense:
        found["moved"] = moved(problem.model, row, net, seed, setting, watch)
    return found


def moved(
    model: nn.Module, row: Row, net: Net, seed: int, setting: Setting, watch: Watch
) -> list[list[float]]:
    """Returns [step, Jaccard distance] of the masks of each snapshot and the one before it."""
    found, before = [], None
    for number in range(1, MASKS + 1):
        step = net.dense * number // MASKS
        model.load_state_dict(watch.kept(f"{row.net}-{seed}-{step}"))
        masks = find_masks(model, "magnitude", setting.density)
        if before is not None:
            found.append([step, jaccard_distance(before, masks)])
        before = masks
    return found


def speedups(record: Record, row: str) -> list[float | None]:
    """Returns how many times sooner than the dense run of its seed each run generalises, None where never."""
    net = ROWS[row].net
    dense = {run["seed"]: run["t_gen"] for run in runs_of(record, f"{net}-dense")}
    pairs = [(dense.get(run["seed"]), run["t_gen"]) for run in runs_of(record, row)]
    return [slow / fast if slow and fast else None for slow, fast in pairs]


def cells(record: Record) -> list[list[str]]:
    """Returns the table: medians of the seeds with their ranges."""
    found = []
    for row in [row for row in ROWS if row in rows_in(record)]:
        runs = runs_of(record, row)
        numbers = [spread([run[name] for run in runs]) for name in ("t_mem", "t_gen")]
        best = spread([run["best"] for run in runs], 3)
        last = f"{max(run['last'] for run in runs):,}"
        found.append([ROWS[row].what, *numbers, spread(speedups(record, row), 1), best, last])
    return found


def verdict(record: Record) -> Verdict:
    """Returns what came out, network by network."""
    nets = [net for net in NETS if f"{net}-ticket" in rows_in(record)]
    times = {net: speedups(record, f"{net}-ticket") for net in nets}
    middle = {net: statistics.median(each or 0.0 for each in found) for net, found in times.items()}
    others = {
        net: max(run["best"] for kind in ("random", "memorised") for run in runs_of(record, f"{net}-{kind}"))
        for net in nets
    }
    sooner = [min(each or 0.0 for each in found) > 1 for found in times.values()]
    sparse = [run["best"] for row in rows_in(record) if row.endswith("-81") for run in runs_of(record, row)]
    dense = [run for net in nets for run in runs_of(record, f"{net}-dense") if run.get("moved")]
    peaks = [max(run["moved"], key=lambda pair: pair[1])[0] / run["last"] for run in dense]
    movement = (
        f"Without decay, tickets of 19 % reach {spread(sparse, 2)} test accuracy; the paper has them "
        f"generalise. Masks of dense runs move most after {spread(peaks, 2)} of their steps."
    )
    return Verdict(
        "yes" if all(sooner) else "in part" if any(sooner) else "no",
        ", ".join(f"{net} {middle[net]:.1f}x" for net in nets),
        [
            "Tickets generalise sooner than the dense network they were found in by these factors (median of "
            "the seeds): " + ", ".join(f"{net} {spread(times[net], 1)}" for net in nets) + ".",
            "Random masks and the largest weights when only memorised reach at best these test accuracies: "
            + ", ".join(f"{net} {others[net]:.3f}" for net in nets)
            + ".",
            *([movement] if sparse and peaks else []),
        ],
    )


def draw(record: Record, figure: Figure) -> None:
    """Draws when each run generalises, and how far the masks of dense runs move."""
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    rows = [row for row in reversed(ROWS) if row in rows_in(record)]
    for height, row in enumerate(rows):
        for run in runs_of(record, row):
            reached = run["t_gen"] is not None
            left.plot(
                run["t_gen"] or run["last"], height, "o" if reached else "x", color="C0" if reached else "0.7"
            )
    left.set_yticks(range(len(rows)), [ROWS[row].what for row in rows], fontsize=5)
    left.set(xscale="log", xlabel="steps to generalisation (x: not by then)")
    for number, net in enumerate(NETS):
        for at, run in enumerate(runs_of(record, f"{net}-dense")):
            if run.get("moved"):
                steps, moved = zip(*run["moved"], strict=True)
                right.plot(
                    [step / steps[-1] for step in steps], moved, f"C{number}", label=None if at else net
                )
    right.set(xlabel="share of the dense run", ylabel="Jaccard distance of masks, a twentieth apart")
    if right.get_legend_handles_labels()[0]:
        right.legend(frameon=False, fontsize=7)


PAPER = Paper(
    name="tickets",
    rows=ROWS,
    run=run,
    sizes={
        "quick": Size(Setting(), [f"small-{kind}" for kind in FIRST], (0, 1)),
        "usual": Size(Setting(), tuple(ROWS)),
        "full": Size(Setting(), tuple(ROWS), tuple(range(10))),
    },
    columns=("run", "t_mem", "t_gen", "sooner than dense", "best test", "last step"),
    cells=cells,
    verdict=verdict,
    draw=draw,
    needs=digits,
)
