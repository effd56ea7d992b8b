"""The CPU's loops are made of vectors: one that is not gives the same bits, in several times the time."""

import platform
import re
import shutil
import subprocess

import pytest

_C = pytest.importorskip("grokfused._C", reason="built without native code")

OBJDUMP = shutil.which("objdump")
LOOP = re.compile(r"^[0-9a-f]+ <.*(?:cpu::update<|update_blocks<).*\[clone \.arch_x86_64_(v[34])")
ROOT = re.compile(r"\sv?sqrt[ps][sd]\s.*%([xyz])mm\d+$")
BY_ONE = re.compile(r"\sv?(?:sqrts[sd]|p?(?:gather|scatter)\w+|insertps)\s")


def loops() -> dict[tuple[str, str], list[str]]:
    """Returns the instructions of each loop, by its name and the architecture it is compiled for."""
    command = [str(OBJDUMP), "-d", "-C", "--no-show-raw-insn", _C.__file__]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[tuple[str, str], list[str]] = {}
    lines: list[str] = []
    for line in listing.splitlines():
        if line.endswith(">:"):
            named = LOOP.match(line)
            lines = found.setdefault((line, named[1]), []) if named else []
        else:
            lines.append(line)
    return found


@pytest.mark.skipif(OBJDUMP is None, reason="objdump is not installed")
@pytest.mark.skipif(
    platform.system() != "Linux" or platform.machine() != "x86_64", reason="no clones (csrc/cpu/clones.h)"
)
def test_each_loop_takes_roots_of_vectors_and_nothing_one_by_one() -> None:
    found = loops()
    assert len(found) >= 100, "the loops are not found by their names"
    for (name, architecture), lines in found.items():
        widths = {root[1] for line in lines if (root := ROOT.search(line.split("#")[0].rstrip()))}
        assert widths, (name, architecture)
        assert widths <= set({"v4": "yz", "v3": "y"}[architecture]), (name, architecture, widths)
        assert not [line for line in lines if BY_ONE.search(line)], (name, architecture)
