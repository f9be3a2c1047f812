"""Checkpoints of a run in progress, from which a killed one goes on bit for bit.

outputs/<address>/checkpoints/ holds step_<n>.pt, two of them at most, and index.json, which lists them with their sha256, newest
first. A file is written aside and renamed, the index after it: a kill at any moment leaves a whole checkpoint. One that is cut short
or changed all the same is passed over, with a warning, for the one before.

This file knows no library: a task gives the function that writes a file, and reads it itself.
"""

import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hypotheses import stopping
from hypotheses.errors import CANNOT_WRITE, UserError
from hypotheses.record import differences, sha256, write_aside

KEEP = 2
SHARE = 0.02  # of the time that may go into writing them, at most


@dataclasses.dataclass(frozen=True)
class Found:
    """A whole checkpoint.

    step     optimiser steps done
    seconds  that training has taken so far, over all attempts
    resumed  the steps at which earlier attempts went on
    devices  that have worked on it"""

    file: Path
    step: int
    seconds: float
    resumed: list[int]
    devices: list[str]


class Checkpoints:
    """Of one run.

    identity  of the run: those of another configuration at the same address are not its own
    made_by   code, software and processes of this one; `device` it runs on
    seconds   between two checkpoints, at least; more where they take long to write; 0: one after every step
    resume    "same": go on only where `made_by` is the same; "any": wherever it is the same run; "never": begin anew
    main      whether this process writes"""

    def __init__(
        self,
        folder: Path,
        identity: str,
        made_by: Mapping[str, Any],
        device: str,
        seconds: float,
        resume: str = "same",
        main: bool = True,
    ):
        self.folder, self.identity, self.made_by, self.device = folder / "checkpoints", identity, made_by, device
        self.pause, self.resume, self.main = seconds, resume, main
        self.begun = self.written_at = time.monotonic()
        self.cost, self.warned = 0.0, False
        self.start: Found | None = None

    def find(self) -> Found | None:
        """The newest whole checkpoint of this run, kept as `start`. Raises UserError where it is not of the same code or software,
        unless the user has said what to do with such ones."""
        if self.resume == "never":
            if self.main:
                shutil.rmtree(self.folder, ignore_errors=True)
            return None
        for entry in listed(self.folder):
            if entry["identity"] != self.identity:
                continue
            file = self.folder / entry["file"]
            if not file.exists() or sha256(file) != entry["sha256"]:
                if self.main:
                    print(f"warning: {file} is not whole: it is passed over for an earlier one", file=sys.stderr)
                continue
            changed = [key for key, *_ in differences(entry["made_by"], dict(self.made_by))]
            if changed and self.resume == "same":
                raise UserError(
                    f"{file} was written by another {', '.join(changed)}: resume=any goes on from it all the same, which the record "
                    "says; resume=never begins anew"
                )
            self.start = Found(file, entry["step"], entry["seconds"], entry["resumed"], entry["devices"])
            return self.start
        return None

    def due(self) -> bool:
        """Whether one should be written now: it is time, or the process was asked to stop."""
        pause = max(self.pause, self.cost / SHARE) if self.pause else 0.0
        return stopping.requested() or time.monotonic() - self.written_at >= pause

    def write(self, step: int, save: Callable[[Path], None]) -> None:
        """Write one after `step` optimiser steps. `save` is called with a path on every process, and the main one keeps the file. A
        full disk is no reason to end a run that could still end well: it is said once, and the earlier ones stay."""
        before = time.monotonic()
        partial, target = self.folder / f".step_{step}.partial", self.folder / f"step_{step}.pt"
        try:
            if self.main:
                self.folder.mkdir(parents=True, exist_ok=True)
            save(partial)
            if self.main:
                self.keep(partial, target, step)
        except OSError as error:
            if error.errno not in CANNOT_WRITE:
                raise
            if not self.warned:
                print(
                    f"warning: no checkpoint is written at {self.folder} ({error.strerror}): make room", file=sys.stderr
                )
            self.warned = True
            partial.unlink(missing_ok=True)
        self.written_at = time.monotonic()
        self.cost = self.written_at - before

    def keep(self, partial: Path, target: Path, step: int) -> None:
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, target)
        entry = {
            "file": target.name,
            "sha256": sha256(target),
            "step": step,
            "seconds": round(self.elapsed(), 1),
            "identity": self.identity,
            "made_by": dict(self.made_by),
            "resumed": self.resumed(),
            "devices": self.devices(),
        }
        mine = [e for e in listed(self.folder) if e["identity"] == self.identity and e["file"] != target.name]
        entries = [entry, *(e for e in mine if e["step"] < step)][:KEEP]
        write_aside(self.folder / "index.json", json.dumps(entries, indent=1) + "\n")
        named = {e["file"] for e in entries} | {"index.json"}
        for file in self.folder.iterdir():
            if file.name not in named:
                file.unlink()

    def elapsed(self) -> float:
        """Seconds of training so far, over all attempts."""
        return (self.start.seconds if self.start else 0.0) + time.monotonic() - self.begun

    def resumed(self) -> list[int]:
        """The steps at which an attempt went on from a checkpoint."""
        return [*self.start.resumed, self.start.step] if self.start else []

    def devices(self) -> list[str]:
        """All that have worked on the run, in order."""
        return list(dict.fromkeys([*(self.start.devices if self.start else []), self.device]))

    def clear(self) -> None:
        """When the record is written."""
        shutil.rmtree(self.folder, ignore_errors=True)


def listed(folder: Path) -> list[dict[str, Any]]:
    """The checkpoints that index.json lists, newest first; none where it is not there or not one of ours."""
    keys = {"file", "sha256", "step", "seconds", "identity", "made_by", "resumed", "devices"}
    try:
        entries = json.loads((folder / "index.json").read_text())
    except (OSError, ValueError):
        return []
    return [e for e in entries if isinstance(e, dict) and keys <= e.keys()] if isinstance(entries, list) else []
