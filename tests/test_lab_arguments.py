"""What commands refuse before they begin: a folder that another process keeps, or that takes no file."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from grokfused.lab.arguments import held
from grokfused.lab.cli import app

KEEPS = """
import sys
from pathlib import Path
from typing import Any
from grokfused.lab.arguments import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other_process(tmp_path: Path, request):
    """Returns a process that keeps the folder until it is killed."""
    command = [sys.executable, "-c", KEEPS, str(tmp_path / "run")]
    root = request.config.rootpath
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.parametrize(
    "command", [["reproduce", "nd-loss", "--quick"], ["reproduce", "settings", "--quick"]], ids=" ".join
)
def test_a_folder_that_another_process_keeps_is_refused(other_process, tmp_path, command) -> None:
    done = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "run")])
    assert done.exit_code == 2
    assert re.search(r"another process works in .*run: wait for its end, or choose another", done.stderr)
    assert list((tmp_path / "run").iterdir()) == []


def test_a_killed_process_keeps_nothing(other_process, tmp_path) -> None:
    with pytest.raises(typer.Exit), held(tmp_path / "run"):
        pass
    other_process.kill()
    other_process.wait()
    for _ in range(2):
        with held(tmp_path / "run"):
            pass


def test_a_folder_that_cannot_be_made_or_written_to_is_refused(tmp_path, capfd) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "run", Path("/proc/self")):
        with pytest.raises(typer.Exit), held(folder):
            pass
        assert re.search(
            rf"{folder} cannot be written to \(.*\); choose another --out", capfd.readouterr().err
        )


def test_grok_refuses_it_too(tmp_path) -> None:
    def grok(*options: str) -> Any:
        return CliRunner().invoke(app, ["grok", "--optimizer", "adam", "--out", str(tmp_path), *options])

    assert grok("--budget", "20").exit_code == 0
    (folder,) = tmp_path.iterdir()
    before = (folder / "metrics.jsonl").read_text()
    with held(folder):
        assert "another process works in" in grok("--budget", "20", "--resume").stderr
        assert "another process works in" in grok("--budget", "20", "--overwrite").stderr
    assert (folder / "metrics.jsonl").read_text() == before
