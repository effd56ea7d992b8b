"""Grokking tickets (arXiv:2310.19470): the largest weights of a network that generalises, trained anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from grokfused import GrokAdamW
from grokfused.lab.addition import loss_of
from grokfused.lab.data import digits
from grokfused.lab.papers import problems
from grokfused.lab.papers.frame import Experiment, Run, Size
from grokfused.lab.papers.problems import Net, Problem, State, problem_of
from grokfused.lab.papers.training import Batches, Training, crossings, curve, has_stayed
from grokfused.lab.papers.watch import Watch
from grokfused.pruning import Ticket, find_masks, find_ticket

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
    "transformer": FIRST[:3],
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
        steps = [net.dense * number // MASKS for number in range(1, MASKS + 1)]
        weights = {step: watch.kept(f"{row.net}-{seed}-{step}") for step in steps}
        found["moved"] = problems.moved(problem.model, weights, setting.density)
    return found


EXPERIMENT = Experiment(
    rows=ROWS,
    run=run,
    sizes={
        "quick": Size(Setting(), [f"small-{kind}" for kind in FIRST], (0, 1)),
        "usual": Size(Setting(), [row for row in ROWS if ROWS[row].net in ("mlp", "small")]),
        "full": Size(Setting(), tuple(ROWS), tuple(range(10))),
    },
    needs=digits,
    work=lambda row, _: {"mlp": 15.0, "transformer": 9.0}.get(ROWS[row].net, 1.0),
)
