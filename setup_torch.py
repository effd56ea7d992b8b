"""Where setup.py finds the torch it compiles for; without one it stops, and leaves nothing out silently."""

import importlib.util
import os
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension
from setuptools.command.build_ext import build_ext

from setup_errors import explain

REFUSAL = """
grokfused is compiled for the torch that it will run with, and cannot be compiled here: {missing}.
Install torch first, then, in that environment:
    pip install pybind11 ninja setuptools
    pip install --no-build-isolation grokfused       (or the path of its source)
GROKFUSED_NATIVE=0 installs it without compiled kernels: correct, and slow without Triton."""


def reveal():
    """Lets torch be imported in an isolated build: pip hides the environment that it installs into.

    So no second torch is fetched. What the build has of its own is found first.
    """
    installed = sysconfig.get_path("purelib")
    if importlib.util.find_spec("torch") is None and Path(installed, "torch").is_dir():
        sys.path.append(installed)


def refusing(missing):
    """Returns setup()'s arguments where `_C` cannot be built: metadata and sdists are made, no package is."""

    class Refuse(build_ext):
        def run(self):
            raise SystemExit(REFUSAL.format(missing=missing))

    return {"ext_modules": [Extension("grokfused._C", [])], "cmdclass": {"build_ext": Refuse}}


def chosen(arguments):
    """Returns setup()'s arguments: those of `arguments`, none if native code is not wanted, or a refusal."""
    if os.environ.get("GROKFUSED_NATIVE") == "0":
        said = "it was left out, as GROKFUSED_NATIVE=0 says"
        explain(said, RuntimeError(said), [Path(__file__).parent])
        return {}
    reveal()
    try:
        return arguments()
    except ModuleNotFoundError as missing:
        return refusing(missing)
