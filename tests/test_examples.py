"""The examples run, and say what they are there to show."""

import re
import runpy
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"
FILES = sorted(EXAMPLES.glob("*.py"))


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Returns a function that runs an example here, in an empty folder, and returns what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    before = torch.get_num_threads()
    torch.set_num_threads(1)

    def example(name: str, *words: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    yield example
    torch.set_num_threads(before)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_an_example_is_short_and_stands_in_the_list(path) -> None:
    assert len(path.read_text().splitlines()) < 80
    assert f"[{path.name}]({path.name})" in (EXAMPLES / "README.md").read_text()


def test_nanogpt_resumes_to_the_loss_of_an_uninterrupted_run(run, tmp_path) -> None:
    whole = run("nanogpt.py", "--steps", 6)
    plain, ours, filtered = re.findall(r": ([\d.]+) nats", whole)
    assert float(plain) < 5.6  # nats of 256 bytes that are all as likely
    assert abs(float(plain) - float(ours)) < 1e-3
    assert filtered != ours
    again = [run("nanogpt.py", "--steps", 6, "--folder", tmp_path / "runs") for _ in range(2)]
    assert again == [whole, whole]  # the second found its checkpoints and had nothing left to do


def test_grokking_memorises_before_it_understands(run) -> None:
    shown = run("grokking.py", "--epochs", 200)
    assert re.findall(r"memorised at epoch (\d+), understood at None", shown) != []


def test_tickets_keep_what_the_mask_keeps(run) -> None:
    shown = run("tickets.py", "--epochs", 40, "--density", 0.1)
    dense, *masked = shown.splitlines()
    assert dense.startswith("dense: ")
    for line, name in zip(masked, ("ticket", "random mask"), strict=True):
        assert re.match(rf"{name}: understood at epoch None, with [\d,]+ weights", line)
    (kept,) = {int(re.search(r"with ([\d,]+)", line)[1].replace(",", "")) for line in masked}
    assert kept == round(0.1 * sum(p.numel() for p in parameters_of_two_dimensions()))


def parameters_of_two_dimensions() -> list[torch.Tensor]:
    from grokking import Net

    return [param for param in Net().parameters() if param.dim() > 1]


def test_finetune_ln_learns_with_the_norms_alone(run) -> None:
    shown = run("finetune_ln.py", "--steps", 150)
    before, after = (
        float(re.search(rf"{name}: loss ([\d.]+)", shown)[1]) for name in ("new task", "fine-tuned")
    )
    assert after < before / 2
    assert "(1.weight, 1.bias, 4.weight, 4.bias)" in shown
    assert "states: 4 of 10 parameters have one" in shown


def test_eight_bit_states_weigh_a_quarter_and_survive_the_way_through_torch(run) -> None:
    shown = run("eight_bit.py", "--steps", 100)
    assert re.findall(r"([\d.]+) bytes", shown) == ["8.00", "4.00", "2.06"]
    assert shown.endswith("bit for bit: True\n")


@pytest.mark.usefixtures("nothing_compiled_before")
def test_compile_makes_one_graph(run) -> None:
    assert "1 graph(s) compiled, equal to eager bit for bit: True" in run("compile.py", "--backend", "eager")


@pytest.mark.slow
def test_step_in_backward_needs_less_memory(tmp_path) -> None:
    command = [sys.executable, EXAMPLES / "step_in_backward.py", "--layers", "12"]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    (after, loss), (inside, same) = re.findall(r": (\d+) MB more at the peak, loss ([\d.]+)", shown)
    assert loss == same
    assert int(inside) < int(after)


@pytest.mark.slow
def test_fsdp2_resumes_on_another_number_of_processes(tmp_path) -> None:
    def torchrun(processes: int) -> str:
        torchrun = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(processes),
        ]
        command = [
            *torchrun,
            EXAMPLES / "fsdp2.py",
            "--steps",
            "20",
            "--folder",
            "saved",
        ]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    first, then = torchrun(2), torchrun(3)
    assert first.startswith("steps 0 to 20 on 2 processes: loss ")
    assert then.startswith("steps 20 to 40 on 3 processes: loss ")
    assert float(then.rpartition(" ")[2]) < float(first.rpartition(" ")[2])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "package", "said"),
    [
        ("huggingface.py", "transformers", "bit for bit: True"),
        ("lightning_module.py", "lightning", "lamb is 0.00 now"),
    ],
)
def test_trainers_of_others(name, package, said, tmp_path) -> None:
    if find_spec(package) is None:  # an extra: `make test` installs it, a bare machine has none
        pytest.skip(f"{package} is not installed (pip install '.[trainers]')")
    command = [sys.executable, EXAMPLES / name, "--steps", "10"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert said in done.stdout, done.stderr[-2000:]
