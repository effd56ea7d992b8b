"""The command ``grokfused``: the demonstration, and what one wants to know of one's own machine.

Its dependencies (typer, rich, matplotlib) are those of the extra ``lab``, and are needed here only.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line, or says what to install and exits with status 2."""
    try:
        from grokfused.lab.cli import app
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("typer", "rich", "matplotlib"):
            raise
        message = f"the grokfused command needs: pip install 'grokfused[lab]' (missing: {missing})"
        print(message, file=sys.stderr)
        sys.exit(2)
    app()
