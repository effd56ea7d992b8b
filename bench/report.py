"""Turns recorded runs into the tables of the documents: ``python -m bench.report`` writes them there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
# document -> the run whose rows stand in it
RECORDS = {
    path: ROOT / "bench" / "results" / f"{run}.json"
    for path, run in {ROOT / "README.md": "step_cpu", ROOT / "bench" / "RESULTS.md": "masks_cpu"}.items()
}
BEGIN, END = "<!-- measured:begin -->\n", "<!-- measured:end -->"


def markdown(record: dict[str, Any]) -> str:
    """Returns the recorded run as Markdown: where, what was promised, and every row."""
    where = record["machine"]
    lines = [
        f"`{where['command']}` on {where['cpu']} ({where['capability']}, {where['threads']} threads), "
        f"torch {where['torch']}, "
        f"commit {where['commit']}, {where['date'][:10]}. Medians; ratios are taken within each round.",
        "",
        "| case | contender | ms (quartiles) | B/element | GB/s | of `copy_` | x ours | x fused |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        ms, longer = row["milliseconds"], row["times_longer_than"]
        cells = [
            row["case"],
            row["contender"],
            f"{ms['median']:.3g} ({ms['low']:.3g}-{ms['high']:.3g})",
            row["bytes_per_element"],
            f"{row['gigabytes_per_second']:.1f}",
            f"{row['share_of_copy']['median']:.2f}",
            f"{longer['GrokAdamW']['median']:.2f}",
            f"{longer['AdamW(fused)']['median']:.2f}",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", "What was aimed at, and what this run measured:", ""]
    for aim in record["promises"]:
        verdict = "kept" if aim["kept"] else "**missed**"
        lines.append(f"- {aim['what']}: {aim['measured']:.2f} (aim {aim['promise']}; {verdict})")
    return "\n".join(lines) + "\n"


def written_into(document: str, record: dict[str, Any]) -> str:
    """Returns a document with its measured part replaced."""
    before, rest = document.split(BEGIN)
    return before + BEGIN + markdown(record) + END + rest.split(END)[1]


if __name__ == "__main__":
    for path, run in RECORDS.items():
        path.write_text(written_into(path.read_text(), json.loads(run.read_text())))
