"""The README is true: its snippets run, its commands exist, its figures are those recorded."""

import re
import subprocess
from pathlib import Path

import pytest

from bench.report import DOCUMENTS, SECTION, written_into

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CI = (ROOT / ".ci" / "run").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda code: code.splitlines()[0])
def test_snippets_run(snippet) -> None:
    exec(compile(snippet, "README.md", "exec"), {})


def test_there_are_snippets() -> None:
    assert len(SNIPPETS) >= 2


TARGETS = sorted({*re.findall(r"^make (\S+)", README + CI, re.MULTILINE), "bench-cpu"})


@pytest.mark.parametrize("target", TARGETS)
def test_make_knows_the_targets(target) -> None:
    subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`((?:grokfused|csrc|bench|tests)/[\w./]+)`", README)))
)
def test_files_exist(path) -> None:
    assert (ROOT / path).exists()


def test_rooms_of_the_matrix_exist() -> None:
    for name in re.findall(r"`(\w+\.h)`", README):
        assert list((ROOT / "csrc").rglob(name)), name
    for name in re.findall(r"`(test_\w+\.py)`", README):
        assert (ROOT / "tests" / name).exists(), name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_measured_figures_are_those_recorded(document) -> None:
    text = document.read_text()
    assert SECTION.search(text)
    assert written_into(text) == text
