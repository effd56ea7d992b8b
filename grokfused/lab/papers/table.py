"""The papers by name, each from its two files."""

from __future__ import annotations

from importlib import import_module

from grokfused.lab.papers.about import ABOUT
from grokfused.lab.papers.frame import Paper


def paper_of(name: str) -> Paper:
    """Returns a paper, whose files have _ for - in their name."""
    module = name.replace("-", "_")
    experiment, page = (import_module(f"grokfused.lab.papers.{folder}{module}") for folder in ("", "shown."))
    return Paper(name, experiment.EXPERIMENT, page.PAGE)


PAPERS = {name: paper_of(name) for name in ABOUT}
