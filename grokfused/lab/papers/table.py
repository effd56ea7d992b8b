"""The papers by name, each from its file."""

from __future__ import annotations

from importlib import import_module

from grokfused.lab.papers.about import ABOUT
from grokfused.lab.papers.frame import Paper

PAPERS: dict[str, Paper] = {
    name: import_module(f"grokfused.lab.papers.{name.replace('-', '_')}").PAPER for name in ABOUT
}
