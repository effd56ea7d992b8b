"""The page on which state dtype to choose: it is its record, its snippet runs, its bytes are true."""

import json
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from grokfused import GrokAdamW
from grokfused.lab import page, reproduce, state_dtypes, state_dtypes_report
from grokfused.lab.state_dtypes import CASES, NAMES, OURS, measure

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "which-state-dtype.md").read_text()
RECORD = json.loads((DOCS / "which-state-dtype.json").read_text())


def test_the_page_is_its_record() -> None:
    assert state_dtypes_report.markdown(RECORD) == PAGE
    assert {(run["case"], run["name"]) for run in RECORD["runs"]} == {
        (case, name) for case in CASES for name in NAMES[1:]
    }
    assert not any("why_not" in run for run in RECORD["runs"])


def test_its_snippet_runs() -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(snippet, "which-state-dtype.md", "exec"), {})


@pytest.mark.parametrize("name", OURS)
def test_its_bytes_are_those_of_the_tensors(name) -> None:
    param = torch.zeros(640, requires_grad=True)
    param.grad = torch.ones(640)
    for grad_filter, what in ("none", "without a filter"), ("ema", "with the filter"):
        optimizer = GrokAdamW([param], state_dtype=OURS[name], grad_filter=grad_filter)
        optimizer.step()
        taken = sum(value.nbytes for key, value in optimizer.state[param].items() if key != "step")
        assert f"| GrokAdamW {what}, {name} | {taken / 640:.4g} |" in PAGE


def test_a_case_compares_with_float32_on_the_same_gradients() -> None:
    few = CASES["plain"]._replace(steps=state_dtypes.LAST + 1)
    assert measure("float32", few, 0) == (0.0, 1.0)
    assert 0 < measure("bfloat16", few, 0).error < measure("block8", few, 0).error < 0.2


def test_what_is_not_installed_is_told(monkeypatch, tmp_path) -> None:
    few = {key: case._replace(steps=state_dtypes.LAST) for key, case in list(CASES.items())[:1]}
    for module in (state_dtypes, state_dtypes_report):
        monkeypatch.setattr(module, "CASES", few)
    missing = state_dtypes.PEERS[state_dtypes.BNB]._replace(where="no_such_package:AdamW8bit")
    monkeypatch.setitem(state_dtypes.PEERS, state_dtypes.BNB, missing)
    done = CliRunner().invoke(reproduce.app, ["state-dtypes", "--seeds", "0", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    page = (tmp_path / "which-state-dtype.md").read_text()
    assert "- bitsandbytes AdamW8bit was not installed." in page


def test_a_recorded_command_names_no_folder(monkeypatch) -> None:
    given = ["grokfused", "reproduce", "state-dtypes", "--out", "/x/y", "--seeds", "1", "--out=/z"]
    monkeypatch.setattr("sys.argv", given)
    assert page.facts()["command"] == "grokfused reproduce state-dtypes --seeds 1"
