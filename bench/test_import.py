"""What ``import grokfused`` adds to ``import torch``: part of ``make bench``; at most 50 ms are promised."""

from __future__ import annotations

import statistics
import subprocess
import sys

# Each import in a process of its own, forked where torch is there already: importing that takes seconds.
MEASURE = """
import gc, os, sys, time, torch
gc.freeze()  # a collection in a forked process copies what torch has made, page by page
# The first import compiles the modules, which Python keeps, as it does of an installed package.
sys.pycache_prefix, sys.dont_write_bytecode = sys.argv[1], False
for _ in range(10):
    process = os.fork()
    if process:
        assert os.waitpid(process, 0)[1] == 0
        continue
    before = time.process_time()
    import grokfused
    print(time.process_time() - before, flush=True)
    os._exit(0)
"""


def test_import(tmp_path, capsys) -> None:
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    _, *compiled = (1e3 * float(line) for line in shown.splitlines())
    with capsys.disabled():
        low, median, high = min(compiled), statistics.median(compiled), max(compiled)
        print(f"\nimport grokfused after torch: {median:.0f} ms ({low:.0f} to {high:.0f}), CPU time; aim: 50")
