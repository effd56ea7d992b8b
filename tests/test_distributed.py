"""Several processes (gloo, CPU) step to where one process steps; they run tests/distributed_workers.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed

ROOT = Path(__file__).parent.parent
WORKERS = ROOT / "tests" / "distributed_workers.py"
CASES = [
    "fsdp2_trains_like_one_process",
    "every_layout_steps_bit_for_bit",
    "a_compiled_step_leaves_the_graph_for_shards",
    "masks_are_sharded_like_their_parameters",
    "gradients_of_other_layouts",
    "ddp_trains_like_one_process",
    "a_step_in_backward_refuses_ddp",
    "a_step_in_backward_of_shards_is_the_ordinary_one",
    "zero_redundancy_optimizer",
    "zero_redundancy_optimizer_keeps_masks",
    "clipping_is_clip_grad_norm_and_a_step_of_one_process",
    "clipping_trains_like_one_process",
    "the_norm_counts_every_element_once",
    "a_norm_that_is_not_finite_reaches_all_processes",
    "an_overflow_on_one_process_cancels_the_step_on_all",
    "shards_that_are_no_dtensors",
    "a_norm_of_a_part_warns",
    "a_scaled_loss",
    "a_full_state_dict_fits_one_process",
    "a_full_state_dict_is_spread_over_two",
    "torch_goes_on_from_an_export_of_shards",
    "a_run_of_one_process_is_spread_as_documented",
    "flattened_states_go_through_a_file",
    "states_made_by_torch_count_no_step",
    "save",
    "save_windows",
    "shards_of_8_bits_are_stepped_as_tensors_of_their_own",
    "save_8_bits",
]

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this torch has no gloo",
)


@pytest.fixture(scope="module")
def said(tmp_path_factory) -> dict[str, str]:
    """Runs the cases, and returns what each process has said: "0_of_2" and so on."""
    folder = tmp_path_factory.mktemp("distributed")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    subprocess.run([sys.executable, str(WORKERS), str(folder)], env=environment, check=True)
    return {file.stem: file.read_text() for file in folder.glob("*_of_*.txt")}


@pytest.mark.parametrize("case", CASES)
def test_two_processes(said, case) -> None:
    for process in "0_of_2", "1_of_2":
        assert f"held: {case}\n" in said[process], said[process]


@pytest.mark.parametrize(
    "case", ["load", "masks_are_never_lost_unnoticed", "neither_are_moments", "load_windows", "load_8_bits"]
)
@pytest.mark.parametrize("world_size", [1, 3])
def test_what_two_processes_saved_resumes_exactly_on(said, world_size, case) -> None:
    for rank in range(world_size):
        process = f"{rank}_of_{world_size}"
        assert f"held: {case}\n" in said[process], said[process]


@pytest.mark.slow
def test_the_example_trains_on_two_processes_and_goes_on_with_one(tmp_path) -> None:
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    for launcher, environment, end in (
        (["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"], {}, "step 2 on 2"),
        ([], alone, "step 4 on 1"),  # what a launcher of one process would tell it
    ):
        ran = subprocess.run(
            [
                sys.executable,
                *launcher,
                "-m",
                "grokfused.lab.sharded",
                "--steps",
                "2",
                "--checkpoint",
                tmp_path,
            ],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            timeout=600,
        )
        assert end in ran.stdout, ran.stderr
