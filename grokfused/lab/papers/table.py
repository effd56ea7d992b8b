"""The table of papers: a new one is a file of this folder and a row here."""

from __future__ import annotations

from grokfused.lab.papers import grokfast, nd_loss
from grokfused.lab.papers.frame import Paper

PAPERS: dict[str, Paper] = {paper.name: paper for paper in (grokfast.PAPER, nd_loss.PAPER)}
