"""Checkpoints of a run in progress, from which a killed one goes on bit for bit.

outputs/<address>/checkpoints/ holds step_<n>.pt, two of them at most, and index.json, which lists them with their sha256, newest
first. A file is written aside and renamed, the index after it: a kill at any moment leaves a whole checkpoint. One that is cut short
or changed all the same is passed over, with a warning, for the one before.

This file knows no library: a task gives what is to be kept as bytes, and reads it itself.
"""

import dataclasses
import json
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
MUST = ("processes", "images")  # in which an attempt cannot differ from the one before
SHARE = 0.02  # of the time that may go into writing them, at most


@dataclasses.dataclass(frozen=True)
class Found:
    """A whole checkpoint.

    step      optimiser steps done
    seconds   that training has taken so far, over all attempts
    attempts  by which it was made, in order: the `made_by` of each, and the step it began at"""

    file: Path
    step: int
    seconds: float
    attempts: list[dict[str, Any]]


class Checkpoints:
    """Of one run.

    identity  of the run: those of another configuration at the same address are not its own
    made_by   code, software, processes, images at a time, threads and device of this attempt
    seconds   between two checkpoints, at least; more where they take long to write; 0: one after every step
    resume    "same": go on only from one of the same code and software; "any": from any of the same run; "never": begin anew
    guard     raises where this process may write no more
    main      whether this process decides and writes, of those of a run"""

    def __init__(
        self,
        folder: Path,
        identity: str,
        made_by: Mapping[str, Any],
        seconds: float,
        resume: str = "same",
        guard: Callable[[], None] = lambda: None,
        main: bool = True,
    ):
        self.folder, self.identity, self.made_by = folder / "checkpoints", identity, dict(made_by)
        self.pause, self.resume, self.guard, self.main = seconds, resume, guard, main
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
            then = entry["attempts"][-1]
            for key in MUST:
                if then.get(key) != self.made_by.get(key):
                    raise UserError(
                        f"{file} was written with {key}={then.get(key)}, now {self.made_by.get(key)}: give the run the devices and "
                        "hardware.max_batch_per_device that it had, or add resume=never to begin anew"
                    )
            if (changed := foreign(entry, self.made_by)) and self.resume == "same":
                raise UserError(
                    f"{file} was written by another {', '.join(changed)}: resume=any goes on from it all the same, which the record "
                    "says; resume=never begins anew"
                )
            self.start = Found(file, entry["step"], entry["seconds"], entry["attempts"])
            return self.start
        return None

    def due(self) -> bool:
        """Whether this process wants one to be written now: it is time, by the clock of the main one, or it was asked to stop."""
        pause = max(self.pause, self.cost / SHARE) if self.pause else 0.0
        return stopping.requested() or (self.main and time.monotonic() - self.written_at >= pause)

    def write(self, step: int, content: bytes) -> None:
        """Write one after `step` optimiser steps. A full disk is no reason to end a run that could still end well: it is said once,
        and the earlier ones stay."""
        self.guard()
        before, target = time.monotonic(), self.folder / f"step_{step}.pt"
        try:
            write_aside(target, content)
            self.keep(target, step)
        except OSError as error:
            if error.errno not in CANNOT_WRITE:
                raise
            if not self.warned:
                print(
                    f"warning: no checkpoint is written at {self.folder} ({error.strerror}): make room", file=sys.stderr
                )
            self.warned = True
        self.written_at = time.monotonic()
        self.cost = self.written_at - before

    def keep(self, target: Path, step: int) -> None:
        """List a file that was written, and remove those before the last two."""
        entry = {
            "file": target.name,
            "sha256": sha256(target),
            "step": step,
            "seconds": round(self.elapsed(), 1),
            "identity": self.identity,
            "attempts": self.attempts(),
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

    def attempts(self) -> list[dict[str, Any]]:
        """Those by which the run has come to where it is: what each was made by, and the step at which it began."""
        before = self.start.attempts if self.start else []
        return [*before, {"step": self.start.step if self.start else 0} | self.made_by]

    def clear(self) -> None:
        """When the record is written."""
        shutil.rmtree(self.folder, ignore_errors=True)


def foreign(entry: Mapping[str, Any], made_by: Mapping[str, Any]) -> list[str]:
    """In what of code and software, as far as `made_by` says, a checkpoint differs from it."""
    then = entry["attempts"][-1]
    keys = [key for key in ("code", "packages", "kernels") if key in made_by]
    return [key for key in keys if list(differences(then.get(key), made_by[key]))]


def listed(folder: Path) -> list[dict[str, Any]]:
    """The checkpoints that index.json lists, newest first; none where it is not there or not one of ours."""
    keys = {"file", "sha256", "step", "seconds", "identity", "attempts"}
    try:
        entries = json.loads((folder / "index.json").read_text())
    except (OSError, ValueError):
        return []
    known = [e for e in entries if isinstance(e, dict) and keys <= e.keys()] if isinstance(entries, list) else []
    return [e for e in known if isinstance(e["attempts"], list) and e["attempts"]]
