"""The files of a run: config, metrics and checkpoint, each valid at every moment, also after a kill."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch

from grokfused.lab.training import Evaluation


class RunFolderError(Exception):
    """A run's directory is not what was asked for; the message says what to do."""


class Config(Protocol):
    """What decides a run."""

    def options(self) -> dict[str, Any]:
        """Returns it as plain values, by name."""


class RunFolder:
    """``config.json``, ``metrics.jsonl``, ``checkpoint.pt`` and ``accuracy.png`` of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.json"
        self.metrics = path / "metrics.jsonl"
        self.checkpoint = path / "checkpoint.pt"
        self.figure = path / "accuracy.png"

        self.files = (self.config, self.metrics, self.checkpoint, self.figure)

    def holds_a_run(self) -> bool:
        """Says whether any file of a run is here."""
        return any(file.exists() for file in self.files)

    def require_free(self) -> None:
        """Refuses a directory that is in use.

        Raises:
            RunFolderError: A run is here already.
        """
        if self.holds_a_run():
            raise RunFolderError(
                f"{self.path} already holds a run: use --resume to continue it, --overwrite to replace it, "
                "or another --out"
            )

    def begin(self, config: Config) -> None:
        """Starts a run here, in place of one that was here before.

        Raises:
            RunFolderError: The directory cannot be made or written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for file in self.files:
                file.unlink(missing_ok=True)
            self.config.write_text(json.dumps(config.options(), indent=2) + "\n")
            self.metrics.touch()
        except OSError as error:
            reason = f"{self.path} cannot be written to ({error.strerror}); choose another --out"
            raise RunFolderError(reason) from error

    def append(self, evaluation: Evaluation) -> None:
        """Adds a line to the metrics."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(asdict(evaluation)) + "\n")

    def evaluations(self) -> list[Evaluation]:
        """Reads the metrics; a last line that a kill cut short is left out.

        Raises:
            RunFolderError: A line is no evaluation.
        """
        lines = self.metrics.read_text().splitlines(keepends=True) if self.metrics.exists() else []
        try:
            return [Evaluation(**json.loads(line)) for line in lines if line.endswith("\n")]
        except (ValueError, TypeError) as error:
            raise RunFolderError(f"{self.metrics} is damaged; start anew with --overwrite") from error

    def save(self, state: dict[str, Any]) -> None:
        """Writes the checkpoint so that at every moment a whole one, old or new, is there."""
        temporary = self.checkpoint.with_suffix(".tmp")
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.checkpoint)

    def load(self) -> dict[str, Any]:
        """Reads the checkpoint.

        Raises:
            RunFolderError: There is no checkpoint, it cannot be read, or the metrics end before it.
        """
        if not self.checkpoint.exists():
            raise RunFolderError(
                f"{self.path} holds no checkpoint to resume from; start anew with --overwrite"
            )
        try:
            # The random state is a CPU tensor whatever the device; the optimizer moves its own states.
            state: dict[str, Any] = torch.load(self.checkpoint, weights_only=True, map_location="cpu")
            state["config"], state["iteration"]
        except Exception as error:  # the unpickler raises whatever a damaged file makes it raise
            raise RunFolderError(
                f"{self.checkpoint} cannot be read ({type(error).__name__}); start anew with --overwrite"
            ) from error
        if state["iteration"] > max((e.iteration for e in self.evaluations()), default=0):
            raise RunFolderError(
                f"{self.metrics} ends before iteration {state['iteration']}, where the checkpoint was taken; "
                "start anew with --overwrite"
            )
        return state

    def cut_metrics(self, iteration: int) -> None:
        """Removes what was measured after ``iteration``: a resumed run measures it again."""
        kept = [entry for entry in self.evaluations() if entry.iteration <= iteration]
        temporary = self.metrics.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(asdict(entry)) + "\n" for entry in kept))
        temporary.replace(self.metrics)
