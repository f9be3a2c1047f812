"""Where the runs of a sweep stand, while it works or after: from the files alone, so also from another machine that sees them. Of runs
that were submitted to Slurm its queue is asked too, where there is one.

python -m hypotheses.status 1 [--scale demo] [--task coco] [--seeds 5] [--arms all] [--watch] [--json] [paths.results=...]
"""

import contextlib
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from hypotheses import claims, record, selection, slurm, standing
from hypotheses.cost import columns
from hypotheses.errors import command
from hypotheses.selection import Selection
from hypotheses.standing import DEAD, FAILED, RECORDED, RUNNING, STALE, Standing

EVERY = 2.0  # seconds between two looks of --watch
IDLE = 60.0  # seconds after which --watch ends where nothing runs any more
QUIET = 60.0  # seconds without a heartbeat from which on that is said


def metric_of(asked: Selection, run: Standing) -> tuple[str, float] | None:
    """The metric that is looked at on a run's task, and its latest value; None before the first validation."""
    name = asked.hypothesis.metrics()[run.config["task"]["name"]]
    if run.record:
        return name, run.record["metrics"][name]
    with contextlib.suppress(OSError, ValueError):
        for text in reversed(Path(standing.folder(run.config), "metrics.jsonl").read_text().splitlines()):
            if (row := json.loads(text)).get(name) is not None:
                return name, row[name]
    return None


def silence(run: Standing) -> float | None:
    """Seconds since the heartbeat of a run in progress, by the clock of its file system."""
    return claims.age(standing.folder(run.config) / "heartbeat.json") if run.state == RUNNING else None


def row(asked: Selection, run: Standing, job: tuple[str, slurm.Entry] | None = None) -> dict[str, Any]:
    """What is said of a run, and of its job."""
    found, beat = metric_of(asked, run), run.beat
    quiet = silence(run)
    queued = job and job[1].live and run.state not in (RUNNING, RECORDED, STALE)
    # of one that was interrupted, what it goes on from
    done = beat.get("step", 0) if run.state == RUNNING else run.step
    return {
        "run": run.address,
        "state": "submitted" if queued else run.state,
        "percent": 100.0 if run.record else 100 * done / beat["steps"] if beat.get("steps") else 0.0,
        "step": beat.get("step"),
        "steps": beat.get("steps"),
        "seconds_left": beat.get("seconds_left") if run.state == RUNNING else None,
        "silent_seconds": quiet,
        "metric": found and found[0],
        "value": found and found[1],
        "failure": "" if queued else run.failure,
        "why": run.why,
        "job": job and job[0],
        "slurm": job and str(job[1]),
        "checkpoint": run.step or None,
        "tail": run.tail if run.state in (FAILED, DEAD) else [],
    }


def table(asked: Selection, rows: list[dict[str, Any]]) -> str:
    counts: dict[str, int] = {}
    for r in rows:
        counts[r["state"]] = counts.get(r["state"], 0) + 1
    said = ", ".join(f"{n} {state}" for state, n in counts.items())
    name = f"hypothesis {asked.hypothesis.hypothesis} at {asked.scale} scale"
    lines = [f"{name}, {asked.seeds} seeds: {len(rows)} runs: {said}", ""]
    body, below = [["run", "state", "done", "left", "metric", ""]], [[]]
    for r in rows:
        state = f"{r['state']} ({r['failure']})" if r["failure"] else r["state"]
        value = "-" if r["value"] is None else f"{r['metric']} {r['value']:.2f}"
        left = "-" if r["seconds_left"] is None else duration(r["seconds_left"])
        body.append([r["run"], state, f"{r['percent']:.0f} %", left, value, ""])
        more = [r["why"]] if r["why"] and r["state"] in (FAILED, STALE, "conflict") else []
        if (r["silent_seconds"] or 0) > QUIET:
            more.append(f"no heartbeat for {duration(r['silent_seconds'])}: slow, or hung")
        if r["slurm"]:
            more.append(f"job {r['job']}: {r['slurm']}")
        if r["state"] in (FAILED, DEAD, "interrupted", "submitted") and r["checkpoint"]:
            more.append(f"goes on from its checkpoint of step {r['checkpoint']}")
        below.append(more + [f"| {line[:140]}" for line in r["tail"]])
    for line, more in zip(columns(body), below, strict=True):
        lines += [line, *(f"      {text}" for text in more)]
    return "\n".join(lines)


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def main(arguments: list[str] | None = None) -> int:
    said = "; ARGS=--watch redraws it, ARGS=--json is for machines"
    parser = selection.parser("status", "Where the runs of a sweep stand.", after=said)
    parser.add_argument("--watch", action="store_true", help="look again until nothing has run for a minute")
    parser.add_argument("--json", action="store_true", help="for machines")
    given = parser.parse_intermixed_args(sys.argv[1:] if arguments is None else arguments)
    asked = selection.read(given)
    configs, seen = asked.configs(), time.monotonic()
    jobs, looked = {}, -math.inf
    while True:
        if time.monotonic() - looked >= slurm.LOOK:
            jobs, looked = slurm.entries(configs), time.monotonic()
        rows = [row(asked, standing.of(config), jobs.get(record.address(config))) for config in configs]
        text = json.dumps(rows, indent=1) if given.json else table(asked, rows)
        if given.watch and sys.stdout.isatty():
            sys.stdout.write("\x1b[H\x1b[2J")
        print(text, flush=True)
        if any(r["state"] in (RUNNING, "submitted") for r in rows):
            seen = time.monotonic()
        finished = all(r["state"] in (RECORDED, STALE) for r in rows)
        if not given.watch or finished or time.monotonic() - seen > IDLE:
            return 0
        time.sleep(EVERY)


if __name__ == "__main__":
    command(main)
