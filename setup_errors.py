"""What goes wrong in a build of `_C`: it is caught with all that was printed, and kept for the package."""

import os
import re
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

from setup_cuda import NoToolkit

BUILD_ERROR = Path("grokfused", "_build_error.txt")


def forget(places, built):
    """Removes what earlier builds have left: if this one fails, theirs would pass for one of its sources."""
    for place in places:
        for left in (BUILD_ERROR, built):
            (place / left).unlink(missing_ok=True)


def explain(reason, error, places):
    """Keeps what `_C` lacks, and why, where the package will find it; or stops if told to."""
    required = os.environ.get("GROKFUSED_REQUIRE_NATIVE") == "1"
    if required and not isinstance(error, NoToolkit):
        raise error
    for place in places:
        (place / BUILD_ERROR).parent.mkdir(parents=True, exist_ok=True)
        (place / BUILD_ERROR).write_text(reason.rstrip() + "\n")
    print(f"grokfused: built without all or some of its native backend: {reason}", file=sys.stderr)


@contextmanager
def everything_printed():
    """Yields a file that receives all output of this process and its children, compilers included."""
    with tempfile.TemporaryFile("w+") as log:
        kept = [os.dup(descriptor) for descriptor in (1, 2)]
        sys.stdout.flush()
        try:
            for descriptor in (1, 2):
                os.dup2(log.fileno(), descriptor)
            yield log
        finally:
            sys.stdout.flush()
            for descriptor, original in zip((1, 2), kept, strict=True):
                os.dup2(original, descriptor)
                os.close(original)


def attempt(build, *how):
    """Returns the error that building raised, or None, and what it printed but for what went well."""
    error = None
    with everything_printed() as log:
        try:
            build(*how)
        except Exception as raised:  # whatever a tool chain throws: its words are kept
            error = raised
        log.seek(0)
        output = log.read()
    print(output)
    return error, re.sub(r"^\[\d+/\d+\] .*\n", "", output, flags=re.MULTILINE).strip()
