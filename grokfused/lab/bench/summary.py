"""What a case says to a reader: a sentence or two, before its table."""

from __future__ import annotations

from collections.abc import Sequence

from grokfused.lab.bench.implementations import FUSED, OURS, PYTHON_EMA
from grokfused.lab.bench.rows import Row


def ratio(row: Row, base: str) -> tuple[float, bool] | None:
    """Returns how many times as long as ``base`` a row took, and whether quartiles tell the two apart."""
    found = row.get("times_longer_than", {}).get(base)
    if found is None:
        return None
    return found["median"], not found["low"] < 1 < found["high"]


def sentence(rows: Sequence[Row]) -> str | None:
    """Returns what to say of the rows of one case, or None where ours or AdamW(fused) was not measured."""
    measured = {row["implementation"]: row for row in rows if "why_not" not in row}
    ours = measured.get(OURS)
    beside = ratio(ours, FUSED) if ours else None
    if ours is None or beside is None:
        return None
    value, sure = beside
    size = ours["elements"]
    count = f"{size / 1e6:.1f} million" if size >= 1e6 else f"{size:,}"
    about = f"{count} {ours['dtype']} parameters in {ours['tensors']:,} tensors"
    said = f"{ours['case']} ({about}): a step takes {value:.2f} of AdamW(fused=True)"
    said += "." if sure else ", which this run cannot tell from 1."
    if PYTHON_EMA in measured and (longer := ratio(measured[PYTHON_EMA], OURS)):
        said += f" The authors' filter before that AdamW takes {longer[0]:.1f} times as long as ours."
    return said
