"""The demonstration: the paper's task and network, and runs that survive anything."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from grokfused.lab.cli import app
from grokfused.lab.model import Decoder
from grokfused.lab.run_folder import RunFolder, RunFolderError
from grokfused.lab.task import modular_multiplication
from grokfused.lab.training import Config, Evaluation, Experiment

SMALL = Config(modulus=7, batch_size=8)


def grok(*arguments: object, code: int = 0) -> str:
    """Runs ``grokfused grok`` in this process and returns what it printed."""
    result = CliRunner().invoke(app, ["grok", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return " ".join(result.output.split())


def metrics(folder: Path) -> list[dict]:
    """Reads the metrics without the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def weights(folder: Path) -> dict:
    return torch.load(folder / "checkpoint.pt", weights_only=True)["model"]


def same_weights(a: dict, b: dict) -> bool:
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


def test_a_resumed_experiment_equals_an_uninterrupted_one_bit_for_bit() -> None:
    whole = Experiment(SMALL)
    expected = list(whole.evaluations(24, stop_at=2))
    half = Experiment(SMALL)
    first = list(half.evaluations(12, stop_at=2))
    resumed = Experiment(SMALL)
    resumed.load_state_dict(half.state_dict())
    got = [*first, *resumed.evaluations(24, stop_at=2)]
    assert [{**asdict(e), "seconds": 0} for e in got] == [{**asdict(e), "seconds": 0} for e in expected]
    assert same_weights(resumed.model.state_dict(), whole.model.state_dict())


def test_a_run_killed_at_any_moment_resumes_to_the_same_end(tmp_path) -> None:
    script = f"""
import os, signal, sys
from grokfused.lab import cli
from grokfused.lab.run_folder import RunFolder
save, kill_at = RunFolder.append, int(sys.argv[1])
def append(self, evaluation):
    save(self, evaluation)
    if evaluation.iteration >= kill_at:
        os.kill(os.getpid(), signal.{{}})
RunFolder.append = append
sys.argv = ["grokfused", "grok", "--budget", "120", "--out", {str(tmp_path)!r}, *sys.argv[2:]]
cli.app()
""".format("SIGKILL")
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    killed = subprocess.run([sys.executable, "-c", script, "110"], env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    folder = next(tmp_path.iterdir())
    assert metrics(folder)[-1]["iteration"] == 120  # measured, but after the last checkpoint (100)
    grok("--budget", 120, "--out", tmp_path, "--resume")
    grok("--budget", 120, "--out", tmp_path / "whole")
    whole = next((tmp_path / "whole").iterdir())
    assert metrics(folder) == metrics(whole)
    assert same_weights(weights(folder), weights(whole))


def test_ctrl_c_leaves_a_run_that_resumes(tmp_path, monkeypatch) -> None:
    append = RunFolder.append

    def interrupted(self: RunFolder, evaluation: Evaluation) -> None:
        append(self, evaluation)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(RunFolder, "append", interrupted)
    assert "--resume" in grok("--budget", 40, "--out", tmp_path, code=130)
    monkeypatch.setattr(RunFolder, "append", append)
    folder = next(tmp_path.iterdir())
    assert [line["iteration"] for line in metrics(folder)] == [20]
    grok("--budget", 40, "--out", tmp_path, "--resume")
    assert [line["iteration"] for line in metrics(folder)] == [20, 40]


def test_a_run_leaves_its_files_and_its_table(tmp_path) -> None:
    shown = grok("--budget", 20, "--out", tmp_path, "--compare", "adam")
    folders = sorted(folder.name for folder in tmp_path.iterdir())
    assert folders == ["adam-lr0.001-wd0-seed0", "grokadam-lr0.001-wd0.005-alpha0.98-lamb2-seed0"]
    for name in folders:
        assert (tmp_path / name / "accuracy.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        assert json.loads((tmp_path / name / "config.json").read_text())["seed"] == 0
        assert metrics(tmp_path / name)[0]["iteration"] == 20
    for word in ("910", "39,890", "published", "not in 20", "without weight decay"):
        assert word in shown


def test_a_run_is_never_overwritten_by_accident(tmp_path) -> None:
    grok("--budget", 20, "--out", tmp_path)
    folder = next(tmp_path.iterdir())
    before = {file: file.read_bytes() for file in folder.iterdir()}
    shown = grok("--budget", 20, "--out", tmp_path, code=2)
    assert "--resume" in shown
    assert "--overwrite" in shown
    assert {file: file.read_bytes() for file in folder.iterdir()} == before


def test_resuming_with_another_option_is_refused_by_name() -> None:
    state = Experiment(SMALL).state_dict()
    with pytest.raises(ValueError, match=r"seed is 1, the run was made with 0"):
        Experiment(Config(modulus=7, batch_size=8, seed=1)).load_state_dict(state)


@pytest.mark.parametrize("content", [None, b"", b"no checkpoint"])
def test_a_missing_or_damaged_checkpoint_is_refused_clearly(tmp_path, content) -> None:
    folder = RunFolder(tmp_path)
    if content is not None:
        folder.checkpoint.write_bytes(content)
    with pytest.raises(RunFolderError, match="no checkpoint" if content is None else "cannot be read"):
        folder.load()


def test_a_line_cut_short_by_a_kill_is_left_out(tmp_path) -> None:
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
        (["--budget", "0"], ["--budget"]),
        (["--resume", "--overwrite"], ["contradict"]),
        (["--compare", "grokadam"], ["runs already"]),
        (["--resume"], ["no checkpoint"]),
    ],
    ids=lambda value: value[0] if value[0].startswith("-") else None,
)
def test_bad_options_are_refused_by_name(arguments, words, tmp_path) -> None:
    shown = grok(*arguments, "--out", tmp_path / "runs", code=2)
    assert all(word in shown for word in words), shown
    assert not (tmp_path / "runs").exists()


def test_info_and_verify_print_what_they_found(monkeypatch) -> None:
    from grokfused.lab import agreement

    shown = CliRunner().invoke(app, ["info"]).output
    assert "native" in shown
    monkeypatch.setattr(
        agreement,
        "cases",
        lambda: iter(
            [agreement.Case(torch.float32, torch.float32, "nearest", "ema", "coupled", False, False)]
        ),
    )
    result = CliRunner().invoke(app, ["verify"])
    assert (result.exit_code, "equal" in result.output) == (0, True)


def test_verify_fails_when_a_backend_differs(monkeypatch) -> None:
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
