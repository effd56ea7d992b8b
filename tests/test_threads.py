"""Several threads: those that save one optimizer, and those that step optimizers of their own; and a fork."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from stepping import BACKENDS, OPTIONS, assert_same_bits, new_param, train, values

from grokfused import GrokAdamW


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Lets Python change threads after every few instructions."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def together(work: Callable[[int], Any], count: int = 4) -> list[Any]:
    """Does the work in several threads at once; returns what each has returned, or raises what one has."""
    done: list[Any] = [None] * count
    failed: list[BaseException] = []
    start = threading.Barrier(count)

    def run(number: int) -> None:
        try:
            start.wait()
            done[number] = work(number)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return done


def masked() -> GrokAdamW:
    params = [new_param(9, seed=number) for number in range(5)]
    optimizer = GrokAdamW(params, **OPTIONS)
    optimizer.set_masks({param: param > 0 for param in params})
    train(optimizer, 1)
    return optimizer


@pytest.mark.usefixtures("hasty_threads")
def test_several_threads_may_save_one_optimizer() -> None:
    optimizer = masked()
    seen = []
    optimizer.register_state_dict_post_hook(lambda _, found: seen.append(found["state"][0]["mask"].dtype))

    def save(_: int) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for _ in range(100)]

    for saved in (saved for each in together(save) for saved in each):
        for number, (param, mask) in enumerate(optimizer.masks().items()):
            assert torch.equal(saved["state"][number]["mask"] == 1, mask)
            assert saved["state"][number]["exp_avg"] is optimizer.state[param]["exp_avg"]
    assert seen == [torch.uint8] * 400  # a hook of others sees what is saved


@pytest.mark.usefixtures("hasty_threads")
def test_a_state_dict_is_taken_while_another_thread_makes_the_states() -> None:
    optimizer = GrokAdamW([new_param(1) for _ in range(2000)], **OPTIONS)

    stepped = threading.Event()

    def step_or_save(number: int) -> int:
        if number == 0:
            try:
                train(optimizer, 1)
            finally:
                stepped.set()
        while not stepped.is_set():
            optimizer.state_dict()
        return len(optimizer.state_dict()["state"])

    assert together(step_or_save, 2) == [2000, 2000]


@pytest.mark.usefixtures("hasty_threads")
@pytest.mark.parametrize("backend", BACKENDS)
def test_four_optimizers_in_four_threads_step_as_one_after_the_other(backend) -> None:
    def trained(number: int) -> dict[str, Any]:
        params = [new_param(31, 33, seed=number), new_param(7, seed=number)]
        optimizer = GrokAdamW(params, backend=backend, state_dtype="bfloat16", seed=number, **OPTIONS)
        optimizer.set_mask(params[0], params[0] > 0)
        train(optimizer, 20, seed=number)
        return values(optimizer)

    for number, found in enumerate(together(trained)):
        assert_same_bits(found, trained(number))


FORKED = """
import os, signal
import torch
from grokfused import GrokAdamW

def make(kind, param):
    return torch.optim.AdamW([param], foreach=False) if kind == "torch" else GrokAdamW([param], backend=kind)

for size, threads in ((100, torch.get_num_threads()), (300_000, 1)):
    torch.set_num_threads(threads) if threads == 1 else None
    for kind in ("torch", "native", "reference"):
        param = torch.ones(size, requires_grad=True)
        param.grad = torch.ones(size)
        optimizer = make(kind, param)
        optimizer.step()
        child = os.fork()
        if not child:
            signal.alarm(30)
            optimizer.step()
            os._exit(int(optimizer.state[param]["step"] != 2))
        print(kind, size, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_child_that_was_forked_after_a_step_steps_where_torch_does(request) -> None:
    """Larger ones on several threads wait forever, torch's too: OpenMP's threads are not forked with it."""
    command = [sys.executable, "-c", FORKED]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=request.config.rootpath, timeout=240)
    cases = [f"{kind} {size} 0" for size in (100, 300_000) for kind in ("torch", *BACKENDS)]
    assert shown.stdout.splitlines() == cases, shown.stderr
