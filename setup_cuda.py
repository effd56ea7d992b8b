"""What setup.py asks CUDA's compiler: where its toolkit is, which version it is, what it compiles for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

# Machine code for these where nvcc knows them, and PTX of the last one for GPUs to come. A GPU runs what is
# made for a smaller minor number too. With nvcc 13.0 all seven take 250 s of one processor, spread over five
# files, and 20 MB.
ARCHITECTURES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.0")
USUAL_FOLDER = "/usr/local/cuda"


class NoToolkit(Exception):
    """There is no CUDA toolkit to build with; the message says where it was looked for."""


class Toolkit(NamedTuple):
    """A CUDA toolkit: its folder, and the version of its nvcc ("13.0.88")."""

    home: Path
    version: str


def find_nvcc() -> str:
    """Returns an nvcc: that of CUDA_HOME or CUDA_PATH, on the PATH, or in the usual folder.

    Raises:
        NoToolkit: There is none, or an empty CUDA_HOME asks for none.
        FileNotFoundError: There is none where CUDA_HOME says.
    """
    if os.environ.get("CUDA_HOME") == "":
        raise NoToolkit("CUDA_HOME is set and empty, which leaves CUDA out")
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    places = [f"{home}/bin"] if home else [os.environ.get("PATH", ""), f"{USUAL_FOLDER}/bin"]
    found = shutil.which("nvcc", path=os.pathsep.join(places))
    if found is None and home:
        raise FileNotFoundError(
            f"no nvcc was found in {home}/bin, as CUDA_HOME says: set it to the toolkit's folder"
        )
    if found is None:
        raise NoToolkit(
            f"no nvcc was found in PATH and {USUAL_FOLDER}/bin: install the CUDA toolkit or set CUDA_HOME to "
            "its folder"
        )
    return found


def said(nvcc: str, *question: str) -> str:
    """Returns all that nvcc prints, or "" where it cannot be run."""
    try:
        done = subprocess.run([nvcc, *question], capture_output=True, text=True, errors="replace")
    except OSError:
        return ""
    return done.stdout + done.stderr


def toolkit_of(nvcc: str) -> Toolkit:
    """Returns the toolkit that an nvcc is of, which may itself be a script or a link elsewhere.

    Raises:
        NoToolkit: It is not known.
    """
    top = re.search(r"^#\$ TOP=(.+)$", said(nvcc, "--dryrun", "-E", "-x", "cu", os.devnull), re.MULTILINE)
    homes = [Path(top[1].strip()).resolve()] if top else []
    homes.append(Path(nvcc).resolve().parent.parent)
    for home in homes:
        version = re.search(r"\bV(\d+\.\d+\.\d+)", said(str(home / "bin" / "nvcc"), "--version"))
        if version:
            return Toolkit(home, version[1])
    own = said(nvcc, "--version").strip() or "nothing"
    raise NoToolkit(
        f"{nvcc} belongs to no CUDA toolkit: to --version it says {own[-200:]!r}, and bin/nvcc in "
        f"{' and '.join(map(str, homes))} tells none; set CUDA_HOME to the toolkit's folder"
    )


def architectures(toolkit: Toolkit) -> str:
    """Returns what is compiled for where TORCH_CUDA_ARCH_LIST does not say it."""
    listed = said(str(toolkit.home / "bin" / "nvcc"), "--list-gpu-code")
    known = [name for name in ARCHITECTURES if re.search(rf"\bsm_{name.replace('.', '')}\b", listed)]
    return ";".join(known or ["8.0", "9.0"]) + "+PTX"


def capabilities(flags: Sequence[str]) -> str:
    """Returns nvcc's flags of architectures as a list of numbers: names ("Ampere", "native") are none."""
    made = re.findall(r"code=(sm|compute)_(\d+)(\d)([a-z]?)", " ".join(flags))
    names = {kind: {(int(a), int(b), c) for k, a, b, c in made if k == kind} for kind in ("sm", "compute")}
    return ";".join(
        f"{a}.{b}{c}" + ("+PTX" if (a, b, c) in names["compute"] else "") for a, b, c in sorted(names["sm"])
    )


def prepare() -> tuple[str, str]:
    """Readies torch for a build with CUDA; returns nvcc's version and the capabilities that are compiled for.

    Raises:
        NoToolkit: There is nothing to build with.
        RuntimeError: The toolkit is of another CUDA than torch.
        ValueError: TORCH_CUDA_ARCH_LIST names what torch does not know.
    """
    import torch

    toolkit, needed = toolkit_of(find_nvcc()), torch.version.cuda
    if toolkit.version.partition(".")[0] != needed.partition(".")[0]:
        raise RuntimeError(
            f"{toolkit.home} is CUDA {toolkit.version}, and this torch is of CUDA {needed}: their first "
            "numbers must be the same; set CUDA_HOME to the folder of such a toolkit"
        )
    os.environ["CUDA_HOME"] = str(toolkit.home)
    from torch.utils import cpp_extension

    cpp_extension.CUDA_HOME = str(toolkit.home)  # it looked for it when it was imported
    if not os.environ.get("TORCH_CUDA_ARCH_LIST"):
        os.environ["TORCH_CUDA_ARCH_LIST"] = architectures(toolkit)
    return toolkit.version, capabilities(cpp_extension._get_cuda_arch_flags())
