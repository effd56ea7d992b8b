"""Several processes (gloo, CPU) step to where one process steps; they run tests/distributed_workers.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed

WORKERS = Path(__file__).with_name("distributed_workers.py")
SECONDS = 150  # for a group of processes on a busy machine; alone it takes about 15
CASES = [
    "fsdp2_trains_like_one_process",
    "every_layout_steps_bit_for_bit",
    "later_steps_run_on_remembered_addresses",
    "masks_are_sharded_like_their_parameters",
    "gradients_of_other_layouts",
    "a_scaled_loss",
    "ddp_trains_like_one_process",
    "zero_redundancy_optimizer",
    "a_full_state_dict_fits_one_process",
    "save",
]

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this torch has no gloo",
)


class Group:
    """Processes that run cases together, each with what it has said."""

    def __init__(self, world_size: int, folder: Path, *cases: str) -> None:
        path = os.pathsep.join([str(WORKERS.parent.parent), os.environ.get("PYTHONPATH", "")])
        self.logs = [folder / f"{rank}_of_{world_size}.txt" for rank in range(world_size)]
        self.processes = []
        for rank, log in enumerate(self.logs):
            command = [sys.executable, str(WORKERS), str(rank), str(world_size), str(folder), *cases]
            with log.open("w") as file:
                self.processes.append(
                    subprocess.Popen(
                        command, stdout=file, stderr=file, env={**os.environ, "PYTHONPATH": path}
                    )
                )

    def finish(self) -> list[str]:
        """Waits, and returns what each process has said."""
        try:
            for process in self.processes:
                process.wait(SECONDS)
        finally:
            for process in self.processes:
                process.kill()
                process.wait()
        return [log.read_text() for log in self.logs]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def said_by_two(folder) -> list[str]:
    return Group(2, folder, *CASES).finish()


@pytest.mark.parametrize("case", CASES)
def test_two_processes(said_by_two, case) -> None:
    for said in said_by_two:
        assert f"held: {case}\n" in said, said


def test_what_two_processes_saved_resumes_exactly_on_one_and_on_three(said_by_two, folder) -> None:
    groups = [Group(world_size, folder, "load") for world_size in (1, 3)]
    for said in [said for group in groups for said in group.finish()]:
        assert "held: load\n" in said, said


def test_the_example_trains_on_two_processes_and_goes_on_with_one(tmp_path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for count, end in (2, 2), (1, 4):
        command = f"-m torch.distributed.run --standalone --nproc-per-node {count} -m grokfused.lab.sharded"
        ran = subprocess.run(
            [sys.executable, *command.split(), "--steps", "2", "--checkpoint", str(tmp_path / "saved")],
            capture_output=True,
            text=True,
            env=environment,
            timeout=SECONDS,
        )
        assert f"step {end} on {count} process" in ran.stdout, ran.stderr
