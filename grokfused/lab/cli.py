"""The command line: thin functions over the package, one per command."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from rich.markup import escape
from rich.table import Table

import grokfused
from grokfused import backends
from grokfused.lab import agreement, report, reproduce
from grokfused.lab.arguments import check_device, held
from grokfused.lab.bench.command import bench
from grokfused.lab.doctor import doctor
from grokfused.lab.run_folder import RunFolder, RunFolderError
from grokfused.lab.terminal import console, interruptible, refuse, say
from grokfused.lab.training import FILTERS, WEIGHT_DECAY, Config, Experiment, OptionChanged

app = typer.Typer(pretty_exceptions_enable=False)
app.add_typer(reproduce.app, name="reproduce")
app.command()(bench)
app.command()(doctor)
OptimizerName = Literal["grokadam", "grokadamw", "adam", "adamw"]
FilterName = Literal["ema", "mean", "none"]
BackendName = Literal["auto", "native", "triton", "reference"]
CHECKPOINT_EVERY = 5  # evaluations
NEXT = """grokfused {version}: AdamW that can amplify slow gradients, in one pass over memory. What next?

  grokfused doctor       is it fast on this machine?       seconds
  grokfused grok         watch a small network grok        two minutes
  grokfused bench        measure it beside other optimizers
  grokfused verify       compare all backends, bit for bit

In Python:       from grokfused import GrokAdamW; help(GrokAdamW)
In your training: replace AdamW by GrokAdamW(..., grad_filter="none"), then try alpha=0.9, lamb=0.5
Every command:   grokfused --help"""
# What each command's --help shows; experiments have one in common.
EXAMPLES = {
    "grok": "grokfused grok --filter mean --compare adamw --seed 1",
    "info": "grokfused info",
    "verify": "grokfused verify",
    "bench": "grokfused bench steps --case demo --seconds 5",
    "doctor": "grokfused doctor --seconds 5",
}


@app.callback(invoke_without_command=True)
def start(context: typer.Context) -> None:
    """Grokfast's slow-gradient amplification and AdamW in one pass: demonstration, checks, measurements."""
    if context.invoked_subcommand is None:
        say(NEXT.format(version=grokfused.__version__))


@dataclass(frozen=True)
class Plan:
    """How to run, as opposed to what: none of it changes a single bit of the result."""

    budget: int
    stop_at: float
    resume: bool
    overwrite: bool


def prepare(config: Config, folder: RunFolder, plan: Plan) -> Experiment:
    """Returns the experiment as it begins or continues; what refuses does so before a file has changed.

    With ``plan.resume``, a directory without a run is one that a stopped ``--compare`` never reached.
    """
    if config.ours:
        backends.choose(config.backend, backends.kind_on(config.device, torch.float32))
    experiment = Experiment(config)
    if plan.resume and folder.holds_a_run():
        experiment.load_state_dict(folder.load())
    elif not plan.overwrite:
        folder.require_free()
    return experiment


def train(experiment: Experiment, folder: RunFolder, plan: Plan) -> report.Run:
    """Runs one experiment to its end; its files are valid at every moment."""
    config = experiment.config
    with interruptible() as interrupted, report.bar(console, config.optimizer, plan.budget) as bar:
        if plan.resume and folder.holds_a_run():
            folder.cut_metrics(experiment.iteration)
        else:
            folder.begin(config)
            folder.save(experiment.state_dict())
        arrived = report.Run(config, folder.evaluations()).arrival(plan.stop_at)
        budget = 0 if arrived else plan.budget
        for number, evaluation in enumerate(experiment.evaluations(budget, plan.stop_at), 1):
            folder.append(evaluation)
            bar.show(evaluation)
            if number % CHECKPOINT_EVERY == 0 or interrupted():
                folder.save(experiment.state_dict())
            if interrupted():
                say(f"interrupted; the same command with --resume continues ({folder.path})")
                raise typer.Exit(130)
    folder.save(experiment.state_dict())
    return report.Run(config, folder.evaluations())


def run_all(configs: list[Config], out: Path, plan: Plan) -> list[report.Run]:
    """Runs experiments one after the other; the figure of each shows those before it too."""
    folders = [RunFolder(out / config.name()) for config in configs]
    if plan.resume and not any(folder.holds_a_run() for folder in folders):
        raise refuse(f"{folders[0].path} holds no run to resume; start without --resume")
    runs: list[report.Run] = []
    try:
        experiments = [prepare(*pair, plan) for pair in zip(configs, folders, strict=True)]
        for experiment, folder in zip(experiments, folders, strict=True):
            with held(folder.path):
                runs.append(train(experiment, folder, plan))
                report.draw(runs, folder.figure, plan.stop_at)
    except (RunFolderError, OptionChanged, MemoryError, backends.BackendUnavailable) as error:
        raise refuse(str(error)) from error
    say(f"files: {folder.path} (metrics.jsonl, accuracy.png, checkpoint.pt)")
    return runs


def _must(be: str, holds: Callable[[float], bool]) -> Any:
    """Returns a typer callback that refuses other numbers; typer's message names the option."""

    def check(value: float | None) -> float | None:
        if value is not None and not holds(value):
            raise typer.BadParameter(f"must be {be}, got {value}")
        return value

    return check


@app.command()
def grok(
    optimizer: Annotated[
        OptimizerName, typer.Option(help="Ours, or torch.optim's Adam and AdamW.")
    ] = "grokadam",
    compare: Annotated[
        OptimizerName | None, typer.Option(help="A second optimizer for the same figure.")
    ] = None,
    weight_decay: Annotated[
        float | None,
        typer.Option(
            callback=_must("a number >= 0", lambda x: 0 <= x < math.inf),
            help="Default: 0.005; with the filter mean 0.01; adam 0; adamw 1.0.",
        ),
    ] = None,
    lr: Annotated[float, typer.Option(callback=_must("a number >= 0", lambda x: 0 <= x < math.inf))] = 1e-3,
    alpha: Annotated[
        float | None,
        typer.Option(callback=_must("in [0, 1)", lambda x: 0 <= x < 1), help="Of ema. Default: 0.98."),
    ] = None,
    lamb: Annotated[
        float | None,
        typer.Option(callback=_must("a finite number", math.isfinite), help="Default: 2; mean 5."),
    ] = None,
    grad_filter: Annotated[
        FilterName, typer.Option("--filter", help="Of ours: the paper's EMA or MA, or none.")
    ] = "ema",
    window: Annotated[
        int | None,
        typer.Option(
            callback=_must("in 2 to 2^24", lambda x: 2 <= x <= 2**24), help="Gradients of mean. Default: 100."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(callback=_must("in 0 to 2^63 - 1", lambda x: 0 <= x < 2**63))] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    graph: Annotated[bool, typer.Option("--graph", help="The training step as one CUDA graph.")] = False,
    backend: Annotated[BackendName, typer.Option(help="See `grokfused info`.")] = "auto",
    budget: Annotated[
        int, typer.Option(callback=_must(">= 1", lambda x: x >= 1), help="Iterations at most.")
    ] = 5_000,
    stop_at: Annotated[
        float,
        typer.Option(
            callback=_must("in (0, 1]", lambda x: 0 < x <= 1),
            help="Validation accuracy that ends a run.",
        ),
    ] = 0.95,
    out: Annotated[Path, typer.Option(help="Where the runs' directories go.")] = Path("runs"),
    resume: Annotated[bool, typer.Option("--resume", help="Continue, bit for bit.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run of the same name.")] = False,
) -> None:
    """Trains a Transformer on x * y mod 97 until it groks: the Grokfast paper's experiment."""
    if resume and overwrite:
        raise refuse("--resume and --overwrite contradict each other: continue the run, or replace it")
    names = [optimizer, *([compare] if compare else [])]
    if len(set(names)) < len(names):
        raise refuse(f"--compare {names[1]} is the optimizer that runs already; name another one")
    check_device(device)
    if graph and torch.device(device).type != "cuda":
        raise refuse(f"--graph captures a CUDA graph and needs --device cuda, got {device}")
    if graph and not all(name.startswith("grok") for name in names):
        raise refuse("--graph captures the steps of grokadam and grokadamw only")
    usual = FILTERS[grad_filter]
    given = {"alpha": alpha, "lamb": lamb, "window_size": window}
    for option in [option for option, value in given.items() if value is not None]:
        if option not in usual.options:
            word = "window" if option == "window_size" else option
            raise refuse(f"--{word} has no effect with --filter {grad_filter}: leave one of them out")
    chosen: dict[str, Any] = {
        "lamb": usual.lamb,
        **{option: value for option, value in given.items() if value is not None},
    }
    plan = Plan(budget, stop_at, resume, overwrite)
    configs = []
    for name in names:
        decay = WEIGHT_DECAY.get(name, usual.weight_decay) if weight_decay is None else weight_decay
        where: dict[str, Any] = {"seed": seed, "device": device, "backend": backend, "graph": graph}
        configs.append(Config(name, decay, lr, grad_filter=grad_filter, **where, **chosen))
    runs = run_all(configs, out, plan)
    console.print(report.table(runs, stop_at))
    console.print(report.HONESTY)


@app.command()
def info() -> None:
    """Says which backends exist here, which one runs, and why the others do not."""
    facts = grokfused.info()
    shown = Table(title=f"grokfused {facts['version']}, torch {facts['torch']}, Python {facts['python']}")
    for column in ("backend", "runs on", "auto takes it on", "refuses"):
        shown.add_column(column)
    for name, backend in facts["backends"].items():
        chosen = [device for device, taken in facts["auto"].items() if taken == name]
        reasons = [f"{device}: {reason}" for device, reason in backend["why_not"].items()]
        refused = escape("\n".join(reasons))
        shown.add_row(name, ", ".join(backend["available"]), ", ".join(chosen), refused)
    console.print(shown)
    notes = [told for backend in facts["backends"].values() for told in backend["note"].values()]
    for line in [*(f"gpu: {gpu}" for gpu in facts["gpus"]), *notes]:
        say(line)
    for key, value in (facts["build"] or {}).items():
        say(f"{key}: {value}")


@app.command()
def verify() -> None:
    """Compares every backend and device with the reference, bit for bit, over the agreement grid."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    shown = Table(title="agreement with the reference, bit for bit")
    for column in ("backend", "device", "cases", "result"):
        shown.add_column(column)
    failed = False
    for name in backends.BACKENDS:
        for device in devices:
            if (name, device) == ("reference", "cpu"):
                continue  # that is the truth itself
            grid = agreement.cases_of(name, device)
            try:
                with report.bar(console, f"{name} on {device}", len(grid)) as bar:
                    wrong = agreement.compare(name, device, grid, bar.advance)
            except backends.BackendUnavailable as refusal:
                shown.add_row(name, device, "0", escape(f"cannot run: {refusal}"))
                continue
            failed = failed or bool(wrong)
            details = "\n".join(f"{case}: {tensors}" for case, tensors in list(wrong.items())[:5])
            verdict = f"[red]{len(wrong)} cases differ[/red]\n{escape(details)}" if wrong else "equal"
            shown.add_row(name, device, str(len(grid)), verdict)
    console.print(shown)
    raise typer.Exit(int(failed))


def _show_examples() -> None:
    """Gives each command's --help an example."""
    for commands, before in (
        (app.registered_commands, ""),
        (reproduce.app.registered_commands, "reproduce "),
    ):
        for command in commands:
            name = str(command.name or getattr(command.callback, "__name__", "")).replace("_", "-")
            seeds = " --seeds 0" if "seeds" in inspect.signature(command.callback or start).parameters else ""
            command.epilog = f"Example: {EXAMPLES.get(name, f'grokfused {before}{name}{seeds}')}"


_show_examples()
