"""What tests/test_distributed.py runs in several processes: each case is a function of the test's folder.

``python distributed_workers.py FOLDER`` leaves a file of each process there, with a line per case that held.
"""

import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import distributed_block8
import distributed_checkpoints
import distributed_scale
import distributed_steps
import torch
import torch.distributed as dist

SECONDS = 150  # for a group on a busy machine; alone it takes a few
FILES = (distributed_steps, distributed_scale, distributed_checkpoints, distributed_block8)
CASES = [case for file in FILES for case in file.CASES]
LOADS = [*distributed_checkpoints.LOADS, *distributed_block8.LOADS]


def work(rank: int, world_size: int, folder: Path, cases: list[Callable[[Path], None]]) -> None:
    """One process of a group; what it says goes into a file of its own."""
    with (folder / f"{rank}_of_{world_size}.txt").open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # A file is the meeting place: a port could be taken by someone else between asking and binding.
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting{world_size}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=300),
    )
    warnings.simplefilter("error")
    for case in cases:
        case(folder)
        print("held:", case.__name__, flush=True)
    dist.destroy_process_group()


def main() -> None:
    """Runs all cases on two processes, and then what loads on one and, meanwhile, on three."""
    folder = Path(sys.argv[1])
    # Forked: importing all this takes seconds, and nothing has started a thread yet.
    new_process = multiprocessing.get_context("fork").Process
    for groups in {2: CASES}, {1: LOADS, 3: LOADS}:
        processes = [
            new_process(target=work, args=(rank, world_size, folder, cases), daemon=True)
            for world_size, cases in groups.items()
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(SECONDS)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
