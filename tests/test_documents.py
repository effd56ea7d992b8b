"""The documents are true: snippets run, and what they name is there: files, links, commands, commits."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import typer

from bench.pictures import PICTURES
from bench.report import DOCUMENTS, SECTION, written_into
from grokfused.lab.cli import app

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
    *(ROOT / "bench" / "RESULTS.md", ROOT / "examples" / "README.md"),
]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text() for path in PAGES}
# Whose snippets test_trainers.py and test_lightning.py run, in an order of their own.
RUN_ELSEWHERE = ("docs/trainers.md",)
SNIPPETS = [
    pytest.param(page, code, id=f"{page}-{number}")
    for page, text in TEXTS.items()
    if page not in RUN_ELSEWHERE
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
]
FOLDERS = "grokfused|csrc|bench|tests|docs|examples|triton_kernels"
EVERY_PAGE = pytest.mark.parametrize("page", TEXTS)


def git(*command: str) -> str:
    done = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


@pytest.mark.parametrize(("page", "code"), SNIPPETS)
def test_snippets_run(page, code) -> None:
    exec(compile(code, page, "exec"), {})


def test_there_are_snippets() -> None:
    assert len(SNIPPETS) >= 15


@EVERY_PAGE
def test_files_that_are_named_exist(page) -> None:
    for name in re.findall(rf"`((?:{FOLDERS})/[\w./-]*\w)`", TEXTS[page]):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"`(test_\w+\.py)`", TEXTS[page]):
        assert (ROOT / "tests" / name).exists(), name
    for name in re.findall(r"`(\w+\.(?:h|cu|cpp))`", TEXTS[page]):
        assert list((ROOT / "csrc").rglob(name)), name


def slugs(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@EVERY_PAGE
def test_links_lead_somewhere(page) -> None:
    prose = re.sub(r"```.*?```", "", TEXTS[page], flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        name, _, anchor = target.partition("#")
        path = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        assert path.exists(), target
        if page == "docs/index.md" or not anchor:
            continue
        text = path.read_text()
        if included := re.search(r"^```\{include\} (\S+)", text):
            text = (path.parent / included[1]).read_text()
        assert anchor in slugs(text), target


def targets(text: str) -> set[str]:
    return {*re.findall(r"^make ([\w-]+)", text, re.MULTILINE), *re.findall(r"`make ([\w-]+)", text)}


NAMED = sorted(set().union(*map(targets, [*TEXTS.values(), (ROOT / ".ci" / "run").read_text()])))


@pytest.mark.parametrize("target", NAMED)
def test_make_knows_the_targets(target) -> None:
    subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)


def test_commands_that_are_named_exist() -> None:
    known = typer.main.get_command(app).commands
    for page, text in TEXTS.items():
        for first, second in re.findall(r"(?:^|`)grokfused ([a-z]+)(?: ([a-z-]+))?", text, re.MULTILINE):
            assert first in known, (page, first)
            assert first != "reproduce" or not second or second in known["reproduce"].commands, (page, second)


def test_options_of_examples_that_are_named_exist() -> None:
    found = [
        (page, name, option)
        for page, text in TEXTS.items()
        for name, words in re.findall(r"examples/([a-z]\w*\.py)((?: +[\w./-]+)*)", text)
        for option in re.findall(r" (--[\w-]+)", words)
    ]
    assert len(found) >= 2
    for page, name, option in found:
        assert f'"{option}"' in (ROOT / "examples" / name).read_text() or option == "--help", (page, option)


def commits() -> dict[str, str]:
    """The commits that documents and recorded runs name, each with one that names it."""
    found = {}
    for page, text in TEXTS.items():
        found |= dict.fromkeys(re.findall(r"\bcommit `?([0-9a-f]{7,40})\b", text), page)
    for path in [*ROOT.glob("docs/**/*.json"), *ROOT.glob("bench/results/**/*.json")]:
        record = json.loads(path.read_text())
        for facts in [record, *(value for value in record.values() if isinstance(value, dict))]:
            if "commit" in facts:
                found[facts["commit"]] = path.name
    return found


def test_commits_that_are_named_exist() -> None:
    assert len(commits()) >= 5
    # A shallow clone, or a source archive, has no older commits: nothing could be told of them there.
    if git("rev-parse", "--is-shallow-repository") != "false":
        pytest.skip("not a clone with its whole history: whether a commit exists cannot be told here")
    missing = {
        commit: page for commit, page in commits().items() if git("cat-file", "-t", commit) != "commit"
    }
    assert missing == {}


@EVERY_PAGE
def test_no_document_depends_on_a_tag(page) -> None:
    """A tag does not travel with a branch: who has the branch alone could not look it up."""
    assert re.findall(r"(?<![\w.-])v\d+\.\d+(?:\.\d+)?\b", TEXTS[page]) == []


def test_the_changelog_has_this_version() -> None:
    from grokfused import __version__

    assert f"\n## [{__version__}]" in TEXTS["CHANGELOG.md"]
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_readme_is_short() -> None:
    text = TEXTS["README.md"]
    assert len(text.splitlines()) <= 120
    prose = re.sub(r"```.*?```|<!--.*?-->|^\|[^\n]*$", "", text, flags=re.DOTALL | re.MULTILINE)
    sentences = re.split(r"(?<=[.:?])\s+|\n\n|\n- | · ", prose)
    longest = max(sentences, key=lambda sentence: len(sentence.split()))
    assert len(longest.split()) <= 30, longest


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_measured_figures_are_those_recorded(document) -> None:
    text = document.read_text()
    assert SECTION.search(text)
    assert written_into(text) == text


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.name)
def test_pictures_are_drawn_from_what_was_recorded(picture) -> None:
    assert picture.read_text() == PICTURES[picture]()
