"""The demonstration: the paper's task and network, and runs that survive anything."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread
from torch import Tensor
from typer.testing import CliRunner

from grokfused import backends
from grokfused.lab import cli
from grokfused.lab.cli import app
from grokfused.lab.model import Decoder
from grokfused.lab.report import percent
from grokfused.lab.run_folder import RunFolder, RunFolderError
from grokfused.lab.task import modular_multiplication
from grokfused.lab.training import Config, Evaluation, Experiment, OptionChanged

SMALL = Config(modulus=7, batch_size=8)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """So little work is slower with more threads, and much slower where they must share a core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the command run on SMALL's task: 3 iterations an epoch, 6 an evaluation."""
    monkeypatch.setattr(cli, "Config", partial(Config, modulus=SMALL.modulus, batch_size=SMALL.batch_size))


def grok(*arguments: object, code: int = 0) -> str:
    """Runs ``grokfused grok`` in this process and returns what it printed."""
    result = CliRunner().invoke(app, ["grok", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def metrics(folder: Path) -> list[dict[str, float]]:
    """Reads the metrics without the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def weights(folder: Path) -> dict[str, Tensor]:
    model: dict[str, Tensor] = torch.load(folder / "checkpoint.pt", weights_only=True)["model"]
    return model


def same_weights(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_the_task_holds_each_equation_once_half_of_them_for_training() -> None:
    task = modular_multiplication(torch.Generator().manual_seed(3))
    assert task.train.shape == task.validation.shape == (4656, 4)
    equations = torch.cat([task.train, task.validation])
    answers = torch.cat([task.train_answers, task.validation_answers])
    assert len(equations.unique(dim=0)) == 9312
    assert torch.equal(equations[:, 0] * equations[:, 2] % 97, answers)
    assert equations.max() + 1 == task.token_count == 99


def test_the_network_has_the_papers_number_of_parameters() -> None:
    assert sum(p.numel() for p in Decoder(99).parameters()) == 422_784


def test_leaving_out_what_the_loss_never_sees_changes_nothing() -> None:
    torch.manual_seed(1)
    model, tokens = Decoder(99), torch.randint(99, (16, 4))
    causal = torch.ones(4, 4, dtype=torch.bool).triu(1)
    x = model.token_embedding(tokens) + model.position_embedding(torch.arange(4))
    for block in model.blocks:
        x = block(x, causal)
    full = model.head(model.ln_f(x))[:, -1]
    # Another shape of the matrix products orders their sums otherwise: some float32 roundings.
    torch.testing.assert_close(model(tokens), full, rtol=1e-5, atol=1e-5)
    model(tokens).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, grad_filter="mean", window_size=7)])
def test_a_resumed_experiment_equals_an_uninterrupted_one_bit_for_bit(config) -> None:
    whole = Experiment(config)
    expected = list(whole.evaluations(24, stop_at=2))
    half = Experiment(config)
    first = list(half.evaluations(12, stop_at=2))
    resumed = Experiment(config)
    resumed.load_state_dict(half.state_dict())
    got = [*first, *resumed.evaluations(24, stop_at=2)]
    assert [{**asdict(e), "seconds": 0} for e in got] == [{**asdict(e), "seconds": 0} for e in expected]
    assert same_weights(resumed.model.state_dict(), whole.model.state_dict())


# On SMALL's task, as `small_task` makes it.
KILLED_RUN = """
import functools, os, signal
from grokfused.lab import cli
from grokfused.lab.run_folder import RunFolder

append = RunFolder.append

def append_and_die(folder, evaluation):
    append(folder, evaluation)
    if evaluation.iteration == 24:
        os.kill(os.getpid(), signal.SIGKILL)

RunFolder.append = append_and_die
cli.CHECKPOINT_EVERY = 3
cli.Config = functools.partial(cli.Config, modulus=7, batch_size=8)
cli.app()
"""


@pytest.mark.usefixtures("small_task")
def test_a_killed_run_resumes_to_the_end_of_an_uninterrupted_one(tmp_path: Path) -> None:
    arguments = ["grok", "--budget", "36", "--out", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_RUN, *arguments], env=environment, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder = next(tmp_path.iterdir())
    assert metrics(folder)[-1]["iteration"] == 24  # measured, but after the last checkpoint (18)
    grok("--budget", 36, "--out", tmp_path, "--resume")
    grok("--budget", 36, "--out", tmp_path / "whole")
    whole = next((tmp_path / "whole").iterdir())
    assert [line["iteration"] for line in metrics(whole)] == [6, 12, 18, 24, 30, 36]
    assert metrics(folder) == metrics(whole)
    assert same_weights(weights(folder), weights(whole))


def press_ctrl_c_in_every_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    append = RunFolder.append

    def interrupted(self: RunFolder, evaluation: Evaluation) -> None:
        append(self, evaluation)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(RunFolder, "append", interrupted)


@pytest.mark.usefixtures("small_task", "ctrl_c")
def test_ctrl_c_leaves_runs_that_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["--budget", 12, "--compare", "adam", "--out", tmp_path]
    with monkeypatch.context() as pressed:
        press_ctrl_c_in_every_evaluation(pressed)
        assert "--resume" in grok(*command, code=130)
    (folder,) = tmp_path.iterdir()  # the second run has not begun
    assert [line["iteration"] for line in metrics(folder)] == [6]
    grok(*command, "--resume")
    assert [[line["iteration"] for line in metrics(each)] for each in tmp_path.iterdir()] == [[6, 12]] * 2


@pytest.mark.usefixtures("small_task", "ctrl_c")
def test_ctrl_c_that_was_ignored_from_the_start_stays_ignored(tmp_path, monkeypatch) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as nohup does
    press_ctrl_c_in_every_evaluation(monkeypatch)
    grok("--budget", 12, "--out", tmp_path)
    assert [line["iteration"] for line in metrics(next(tmp_path.iterdir()))] == [6, 12]
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_run_leaves_its_files_and_its_table(tmp_path: Path) -> None:
    shown = grok("--budget", 20, "--out", tmp_path, "--compare", "adam")
    folders = sorted(folder.name for folder in tmp_path.iterdir())
    assert folders == ["adam-lr0.001-wd0-seed0", "grokadam-lr0.001-wd0.005-alpha0.98-lamb2-seed0"]
    for name in folders:
        assert imread(tmp_path / name / "accuracy.png").shape == (720, 1200, 4)
        assert json.loads((tmp_path / name / "config.json").read_text())["seed"] == 0
        assert metrics(tmp_path / name)[0]["iteration"] == 20
    for word in ("910", "39,890", "published", "not in 20", "without weight decay"):
        assert word in shown


def test_a_finer_threshold_is_not_rounded_away() -> None:
    assert [percent(share) for share in (0.95, 0.999, 1.0)] == ["95 %", "99.9 %", "100 %"]


@pytest.mark.usefixtures("small_task")
def test_a_run_is_never_overwritten_by_accident(tmp_path: Path) -> None:
    grok("--budget", 20, "--out", tmp_path)
    folder = next(tmp_path.iterdir())
    before = {file: file.read_bytes() for file in folder.iterdir()}
    shown = grok("--budget", 20, "--out", tmp_path, code=2)
    assert "--resume" in shown
    assert "--overwrite" in shown
    assert {file: file.read_bytes() for file in folder.iterdir()} == before


@pytest.mark.usefixtures("small_task")
def test_a_comparison_is_refused_before_its_first_run(tmp_path: Path) -> None:
    grok("--budget", 20, "--optimizer", "adam", "--out", tmp_path)
    assert "adam-lr0.001-wd0-seed0 already holds a run" in grok(
        "--compare", "adam", "--out", tmp_path, code=2
    )
    assert [folder.name for folder in tmp_path.iterdir()] == ["adam-lr0.001-wd0-seed0"]


def test_resuming_with_another_option_is_refused_by_name() -> None:
    state = Experiment(SMALL).state_dict()
    with pytest.raises(OptionChanged, match=r"seed is 1, the run was made with 0"):
        Experiment(replace(SMALL, seed=1)).load_state_dict(state)


def test_resuming_without_a_filter_ignores_the_filters_options() -> None:
    adam = replace(SMALL, optimizer="adam", weight_decay=0.0)
    Experiment(replace(adam, lamb=3.0)).load_state_dict(Experiment(adam).state_dict())


@pytest.mark.slow
def test_a_filter_brings_what_the_paper_ran_it_with(tmp_path: Path) -> None:
    grok("--budget", 20, "--filter", "mean", "--out", tmp_path)
    grok("--budget", 20, "--filter", "mean", "--window", 7, "--lamb", 1, "--out", tmp_path)
    grok("--budget", 20, "--filter", "none", "--out", tmp_path)
    assert {folder.name for folder in tmp_path.iterdir()} == {
        "grokadam-lr0.001-wd0.01-mean100-lamb5-seed0",
        "grokadam-lr0.001-wd0.01-mean7-lamb1-seed0",
        "grokadam-lr0.001-wd0.005-nofilter-seed0",
    }


@pytest.mark.parametrize("content", [None, b"", b"no checkpoint"])
def test_a_missing_or_damaged_checkpoint_is_refused_clearly(tmp_path: Path, content: bytes | None) -> None:
    folder = RunFolder(tmp_path)
    if content is not None:
        folder.checkpoint.write_bytes(content)
    with pytest.raises(RunFolderError, match="no checkpoint" if content is None else "cannot be read"):
        folder.load()


@pytest.mark.parametrize(("content", "words"), [("", "ends before iteration 6"), ("nothing\n", "damaged")])
def test_metrics_that_do_not_reach_the_checkpoint_are_refused(
    tmp_path: Path, content: str, words: str
) -> None:
    folder = RunFolder(tmp_path)
    experiment = Experiment(SMALL)
    list(experiment.evaluations(6, stop_at=2))
    folder.save(experiment.state_dict())
    folder.metrics.write_text(content)
    with pytest.raises(RunFolderError, match=words):
        folder.load()


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.append(Evaluation(20, 1.0, 0.5, 0.25, 3.0))
    with folder.metrics.open("a") as file:
        file.write('{"iteration": 40, "lo')
    assert [e.iteration for e in folder.evaluations()] == [20]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--alpha", "1.5"], ["--alpha", "[0, 1)", "1.5"]),
        (["--weight-decay", "-1"], ["--weight-decay", ">= 0", "-1"]),
        (["--lr", "nan"], ["--lr", "nan"]),
        (["--optimizer", "sgd"], ["--optimizer", "sgd", "grokadamw"]),
        (["--device", "nowhere"], ["--device nowhere"]),
        (["--budget", "0"], ["--budget", ">= 1", "got 0"]),
        (["--resume", "--overwrite"], ["contradict"]),
        (["--compare", "grokadam"], ["runs already"]),
        (["--resume"], ["holds no run to resume"]),
        (["--stop-at", "0"], ["--stop-at", "(0, 1]", "0.0"]),
        (["--lamb=-inf"], ["--lamb", "finite", "-inf"]),
        (["--graph"], ["--graph", "--device cuda", "got cpu"]),
        (["--seed", "-1"], ["--seed", "2^63", "-1"]),
    ],
    ids=lambda value: value[0] if value[0].startswith("-") else None,
)
def test_bad_options_are_refused_by_name(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    shown = grok(*arguments, "--out", tmp_path / "runs", code=2)
    assert all(word in shown for word in words), shown
    assert not (tmp_path / "runs").exists()


def test_a_directory_that_cannot_be_written_to_is_refused_clearly(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "choose another --out" in grok("--out", tmp_path / "file", code=2)


def test_info_and_verify_print_what_they_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from grokfused.lab import agreement

    shown = CliRunner().invoke(app, ["info"]).output
    assert "native" in shown
    first = next(agreement.cases())
    monkeypatch.setattr(agreement, "cases", lambda: iter([first]))
    result = CliRunner().invoke(app, ["verify"])
    assert (result.exit_code, "equal" in result.output) == (0, True)


def test_what_is_missing_is_printed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from grokfused.lab import agreement

    missing = "pip install 'grokfused[triton]'"

    def unavailable(*_: object) -> None:
        raise backends.BackendUnavailable(missing)

    monkeypatch.setattr(agreement, "compare", unavailable)
    monkeypatch.setattr(backends.backend("triton"), "why_not", lambda kind: missing)
    for command in ("info", "verify"):
        assert "'grokfused[triton]'" in CliRunner().invoke(app, [command]).output


def test_verify_fails_when_a_backend_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    from grokfused.lab import agreement

    monkeypatch.setattr(agreement, "compare", lambda *_: {"float32": {"odd param": 3}})
    result = CliRunner().invoke(app, ["verify"])
    assert result.exit_code == 1
    assert "cases differ" in result.output


def test_the_command_says_what_to_install_where_the_extra_is_missing() -> None:
    code = "import sys; sys.modules['typer'] = None; from grokfused.lab import main; main()"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert shown.returncode == 2
    assert "pip install 'grokfused[lab]' (missing: typer)" in shown.stderr
