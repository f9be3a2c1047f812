"""A run's progress: a bar on the terminal, its metrics as rows of a file, and a heartbeat that a sweep can read.

Knows no runner: the Lightning callback calls it, and any other can.
"""

import contextlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hypotheses.record import write_aside
from hypotheses.tracking import Live

HEARTBEAT = 2.0  # seconds


class Enough(Exception):  # noqa: N818  nothing went wrong
    """A measurement has seen as many steps as it asked for; `ends` are the times at which they ended."""

    def __init__(self, ends: list[float]):
        super().__init__(f"{len(ends)} steps were measured")
        self.ends = ends


class Progress:
    """Counts optimiser steps. Files, in the run's folder:

    metrics.jsonl   a row per validation: step, epoch, train loss, learning rate, validation metrics, seconds since start
    heartbeat.json  step, steps, seconds since start and seconds left, written every HEARTBEAT seconds

    A run that goes on from a checkpoint gives the `step` it goes on from, with the `rows` and `seconds` until there. Of a
    measurement `only` says how many steps are enough: then `Enough` is raised. W&B is `told` every row, the earlier ones first.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        steps: int,
        step: int = 0,
        seconds: float = 0.0,
        rows: Sequence[Mapping[str, float]] = (),
        only: int | None = None,
        told: Live | None = None,
    ):
        from tqdm import tqdm

        self.folder, self.steps, self.step, self.first = folder, steps, step, step
        self.begun = self.beat_at = time.monotonic()
        self.start = self.begun - seconds
        self.kept = [dict(row) for row in rows]
        self.only, self.ends, self.told = only, list[float](), told
        self.shown: dict[str, str] = {}
        self.rows = open(folder / "metrics.jsonl", "w", buffering=1)  # noqa: SIM115
        self.rows.writelines(json.dumps(row) + "\n" for row in self.kept)
        if told:
            for row in self.kept:
                told.row(row)
        # in a log, where there is no terminal to redraw, a line now and then is enough
        interval = 0.5 if sys.stderr.isatty() else 30.0
        self.bar = tqdm(total=steps, initial=step, desc=name, unit="step", mininterval=interval, dynamic_ncols=True)
        self.beat()

    def due(self) -> bool:
        """Whether it is time for a heartbeat; ask before computing a loss for it."""
        return time.monotonic() - self.beat_at >= HEARTBEAT

    def advance(self) -> None:
        self.step += 1
        self.bar.update()
        if self.only:
            wait_for_gpu()
            self.ends.append(time.monotonic())
            if len(self.ends) == self.only:
                raise Enough(self.ends)

    def show(self, **values: float) -> None:
        """Show values beside the bar, such as loss=0.31 or top1_percent=91.2, and write a heartbeat."""
        self.shown |= {key: f"{value:.4g}" for key, value in values.items()}
        self.bar.set_postfix(self.shown, refresh=False)
        self.beat()

    def row(self, **values: float) -> None:
        """One row of metrics.jsonl."""
        row = {"step": self.step, **values, "seconds": round(time.monotonic() - self.start, 3)}
        self.kept.append(row)
        self.rows.write(json.dumps(row) + "\n")
        if self.told:
            self.told.row(row)

    def beat(self) -> None:
        self.beat_at = time.monotonic()
        seconds, done = self.beat_at - self.start, self.step - self.first
        left = (self.beat_at - self.begun) / done * (self.steps - self.step) if done else None
        state: dict[str, Any] = {"step": self.step, "steps": self.steps, "seconds": seconds, "seconds_left": left}
        with contextlib.suppress(OSError):  # a full disk is no reason to lose a run that could still end well
            write_aside(self.folder / "heartbeat.json", json.dumps(state | {"shown": self.shown}))

    def close(self) -> None:
        self.bar.close()
        self.rows.close()


def wait_for_gpu() -> None:
    """For what was asked of it so far: a GPU is given its work long before it has done it."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
