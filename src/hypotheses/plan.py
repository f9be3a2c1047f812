"""What a sweep would do and cost, before anything is trained.

    python -m hypotheses.plan 1 [--scale demo] [--task coco] [--seeds 5] [--arms all] [--budget MINUTES] [--json] [hardware=...]

Every run with what would become of it (reuse, resume, run; ask, where a record is of other code) and why; for each arm on each task
parameters, MACs, memory, disk and minutes. These come from runs of the same configuration that are recorded, else from a measurement: a
child process with the real data and network, STEPS optimiser steps of which the first is not counted, and BATCHES of the validation, as many
side by side as the sweep would run.
"""

import concurrent.futures
import dataclasses
import json
import os
import queue
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from hypotheses import data, estimate, experiment, pretrained, record, selection, standing
from hypotheses.config import Config, compose, is_dense
from hypotheses.cost import amount, columns
from hypotheses.errors import UserError, command
from hypotheses.estimate import Estimate
from hypotheses.selection import Selection
from hypotheses.standing import CONFLICT, RECORDED, RUNNING, STALE, Standing
from hypotheses.sweep import Slot, make_slots

STEPS, BATCHES = 3, 2
ACTIONS = {RECORDED: "reuse", STALE: "ask", RUNNING: "wait", CONFLICT: "mend"}
BYTES = {"weights": 4, "checkpoint": 12}  # a parameter: itself, and AdamW's two moments


@dataclasses.dataclass(frozen=True)
class Cell:
    """An arm on a task.

    runs      of it to be made
    left      shares of a run that are to be done, summed over those
    minutes   of a whole run, alone on its device; None where it could not be known
    source    where minutes and memory come from, in words"""

    task: str
    arm: str
    runs: int
    left: float
    params: int
    macs: int
    memory_bytes: int | None
    disk_bytes: int
    minutes: float | None
    source: str


@dataclasses.dataclass(frozen=True)
class Elsewhere:
    """An arm on a task whose time is not known here, as it would be on a GPU: `runs` that have no record."""

    task: str
    arm: str
    runs: int
    estimate: Estimate


@dataclasses.dataclass(frozen=True)
class Plan:
    asked: Selection
    runs: list[Standing]
    cells: list[Cell]
    slots: int
    elsewhere: "list[Elsewhere]"

    @property
    def minutes(self) -> float | None:
        """Until all is done, with as many runs side by side as there are slots."""
        if any(cell.minutes is None for cell in self.cells if cell.runs):
            return None
        total = sum((cell.minutes or 0.0) * cell.left for cell in self.cells)
        longest = max(((cell.minutes or 0.0) for cell in self.cells if cell.runs), default=0.0)
        return max(longest, total / self.slots)

    @property
    def disk_bytes(self) -> int:
        return sum(cell.disk_bytes for cell in self.cells)


def action(run: Standing, stale: str | None) -> str:
    """What a sweep would do with a run."""
    if run.state == STALE and stale:
        return "reuse" if stale == "reuse" else "run"
    if run.foreign:
        return "ask"
    return ACTIONS.get(run.state) or ("resume" if run.step else "run")


def why(run: Standing) -> str:
    if run.state == RECORDED:
        return "recorded by the code and software of now"
    if run.state == STALE:
        return f"recorded {run.why}: say STALE=reuse or STALE=rerun"
    said = {standing.FAILED: f"failed ({run.failure}): {run.why}"}.get(run.state, run.why or run.state)
    said = "no record, never begun" if run.state == standing.WAITING else said
    if run.foreign:
        return f"{said}; {run.foreign}: say ARGS=resume=any or ARGS=resume=never"
    return f"{said}; checkpoint of step {run.step}" if run.step else said


def make(asked: Selection, measure: bool = True) -> Plan:
    """The plan of a sweep; without `measure` minutes come from records alone."""
    configs = asked.configs()
    asked.check_pairs(configs)
    runs = standing.of_all(configs, plan=True)
    slots = make_slots(configs[0], asked.jobs)
    groups: dict[str, list[Standing]] = {}
    for run in runs:
        groups.setdefault(run.cell, []).append(run)
    to_measure, known = [], {}
    for name, group in groups.items():
        if not any(action(run, asked.stale) in ("run", "resume") for run in group):
            continue
        if found := from_records(group, slots[0]):
            known[name] = found
        elif measure:
            to_measure.append((name, group[0].config))
    known |= measured(to_measure, slots, asked.overrides)
    cells = [cell(group, known.get(name), asked.stale) for name, group in groups.items()]
    return Plan(asked, runs, cells, len(slots), elsewhere(groups, known, asked))


def elsewhere(groups: dict[str, list[Standing]], known: dict[str, Any], asked: Selection) -> list[Elsewhere]:
    """Of the arms that nothing is known of here, at a scale that is for GPUs."""
    if asked.scale not in ("pilot", "paper"):
        return []
    found = []
    for name, group in groups.items():
        missing = [run for run in group if action(run, asked.stale) not in ("reuse", "ask")]
        if missing and known.get(name, {}).get("seconds") is None:
            task, arm = group[0].config["task"]["name"], record.arm(group[0].config)
            found.append(Elsewhere(task, arm, len(missing), estimate.of_run(group[0].config)))
    return found


def cell(group: list[Standing], known: dict[str, Any] | None, stale: str | None) -> Cell:
    from hypotheses import cost

    config = group[0].config
    network = cost.of_run(config)
    missing = [run for run in group if action(run, stale) in ("run", "resume")]
    left = sum(1 - run.step / run.beat["steps"] if run.step and run.beat.get("steps") else 1.0 for run in missing)
    # the weights of every run stay; checkpoints, two whole ones and one being written, go when it is recorded
    disk = network["params"] * (BYTES["weights"] * len(missing) + (3 * BYTES["checkpoint"] if missing else 0))
    task, arm = config["task"]["name"], record.arm(config)
    found = known or {"seconds": None, "memory": None, "source": "not measured" if missing else "nothing to do"}
    minutes = None if found["seconds"] is None else found["seconds"] / 60
    return Cell(
        task,
        arm,
        len(missing),
        left,
        network["params"],
        network["macs"],
        found["memory"],
        disk,
        minutes,
        found["source"],
    )


def from_records(group: list[Standing], slot: Slot) -> dict[str, Any] | None:
    """Seconds and memory of the runs of a cell that are recorded with the recipe of now, on such a device with as many threads."""
    from hypotheses.run import device_name

    wanted = group[0].config
    device, threads = device_name(wanted), int(slot.environment.get("OMP_NUM_THREADS", 0))
    records = [
        r
        for run in group
        if (r := run.record)
        and r["config"]["recipe"] == wanted["recipe"]
        and r["provenance"]["device"] == device
        and threads in (0, r["provenance"]["threads"])
    ]
    if not records:
        return None
    seconds = [found["seconds"] for found in records]
    memory = [found["provenance"].get("peak_memory_bytes") or 0 for found in records]
    plural = "s" if len(records) > 1 else ""
    return {
        "seconds": sum(seconds) / len(seconds),
        "memory": max(memory) or None,
        "source": f"mean of {len(records)} record{plural}",
    }


def measured(cells: list[tuple[str, Config]], slots: list[Slot], overrides: list[str]) -> dict[str, dict[str, Any]]:
    """Of each cell, by a child process, as many at a time as there are slots."""
    free: queue.Queue[Slot] = queue.Queue()
    for slot in slots:
        free.put(slot)

    def one(name: str, config: Config) -> dict[str, Any]:
        slot = free.get()
        print(f"measuring {name}: {STEPS} steps", file=sys.stderr, flush=True)
        scale, task = config["scale"]["name"], config["task"]["name"]
        arguments = experiment.run_overrides(scale, task, record.arm(config), config["seed"])
        done = subprocess.run(
            [sys.executable, "-m", "hypotheses.plan", "--measure", *arguments, *slot.overrides, *overrides],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**os.environ, **slot.environment},
        )
        free.put(slot)
        if done.returncode == 0:
            return json.loads(done.stdout.splitlines()[-1])
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return {
            "seconds": None,
            "memory": None,
            "source": f"cannot be measured: {lines[-1].removeprefix('error: ')}",
        }

    with concurrent.futures.ThreadPoolExecutor(len(slots)) as pool:
        return dict(zip([name for name, _ in cells], pool.map(lambda cell: one(*cell), cells), strict=True))


def measure_here(config: Config) -> dict[str, Any]:
    """Seconds of a whole run and its memory, from a few steps and batches of the validation in this process."""
    import tempfile

    from hypotheses import allocator, tasks
    from hypotheses.progress import Enough, wait_for_gpu
    from hypotheses.run import check_devices, peak_memory

    begun = time.monotonic()
    if config["hardware"]["devices"] != 1:
        raise UserError("runs of several devices are not measured, only taken from records")
    allocator.keep_memory()
    check_devices(config)
    images, start = data.prepare(config), pretrained.find(config)

    import torch

    if threads := config["hardware"]["threads"]:
        torch.set_num_threads(threads)
    task, recipe = tasks.load(config["task"]["name"]), config["recipe"]
    with tempfile.TemporaryDirectory() as folder:
        run = tasks.Run(config, images, Path(folder), str(start.file) if start else None, None, STEPS)
        job = task.build(run)
        steps = job.report.steps
        try:
            task.train(job)
            ends: list[float] = []
        except Enough as enough:
            ends = enough.ends
        built = (ends[0] if ends else time.monotonic()) - begun
        step = (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else built / max(1, steps)
        before = time.monotonic()
        seen = task.validate_some(job, BATCHES)
        wait_for_gpu()
        image = (time.monotonic() - before) / max(1, seen)
        total = count_validation(job)
    length = recipe.get("steps") or recipe["epochs"]
    # at the end mmengine validates in any case, and classification once more than its schedule says
    dense = is_dense(config["task"]["name"])
    validations = -(-length // recipe["validate_every"]) if dense else length // recipe["validate_every"] + 1
    seconds = built + step * (steps - 1) + image * total * validations
    return {
        "seconds": seconds,
        "memory": peak_memory(config),
        "source": f"measured: {1000 * step:.0f} ms a step, {steps} steps; {1000 * image:.1f} ms an image, {validations} x {total}",
    }


def count_validation(job: Any) -> int:
    """Images of a job's validation split."""
    return len((job.val_loader if hasattr(job, "val_loader") else job.runner.val_dataloader).dataset)


# ---- what is printed -------------------------------------------------------------------------------------------------


def table(plan: Plan) -> str:
    asked, lines = plan.asked, []
    actions = [action(run, asked.stale) for run in plan.runs]
    counts = ", ".join(f"{actions.count(a)} {a}" for a in dict.fromkeys(actions))
    lines.append(
        f"hypothesis {asked.hypothesis.hypothesis} at {asked.scale} scale, {asked.seeds} seeds: {len(plan.runs)} runs: {counts}; "
        f"{plan.slots} at a time"
    )
    body = [["run", "action", "why"]]
    body += [[run.address, a, why(run)] for run, a in zip(plan.runs, actions, strict=True)]
    widths = [max(len(row[i]) for row in body) for i in range(2)]
    lines += ["", *(f"  {row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]}" for row in body), ""]
    body = [["task, arm", "to run", "parameters", "MACs", "memory", "disk", "minutes a run", "minutes", "from"]]
    for found in plan.cells:
        each = "-" if found.minutes is None else f"{found.minutes:.1f}"
        total = "-" if found.minutes is None else f"{found.minutes * found.left:.1f}"
        body.append(
            [
                f"{found.task} {found.arm}",
                f"{found.runs}",
                f"{found.params:,}",
                amount(found.macs, ("", "k", "M", "G", "T"), 1000),
                "-" if found.memory_bytes is None else size(found.memory_bytes),
                size(found.disk_bytes),
                each,
                total,
                found.source,
            ]
        )
    sources = [row.pop() for row in body]
    lines += [f"{line}  {source}" for line, source in zip(pad(columns(body)), sources, strict=True)]
    lines += on_gpus(plan.elsewhere)
    minutes = "cannot be said" if plan.minutes is None else f"about {plan.minutes:.0f} minutes"
    lines += [
        "",
        f"all of it: {minutes} with {plan.slots} at a time, {size(plan.disk_bytes)} of disk beside the data",
        "",
        "memory   of a process, the most that it holds: on a GPU what is allocated there",
        "disk     weights of the runs to be made, and three checkpoints of one of them, which go when it is recorded",
        "minutes  of one run, then of all that are to be made; a measurement takes seconds, and much too long where others",
        "         use the machine (three times was seen). A sham that a win of the larger arm would ask for comes on top",
    ]
    return "\n".join(lines)


def on_gpus(found: list[Elsewhere]) -> list[str]:
    """The estimate for GPUs that are not here, with what it assumes."""
    if not found:
        return []
    body = [
        [
            "on GPUs that are not here, estimated",
            "runs",
            "images",
            "memory",
            "most",
            *(f"{name} hours a run" for name in estimate.GPUS),
        ]
    ]
    for one in found:
        e = one.estimate
        at_a_time = f"{e.images}" + (f" x {e.passes}" if e.passes > 1 else "")
        hours = [f"{value:.3g}" for value in e.hours.values()]
        body.append([f"{one.task} {one.arm}", f"{one.runs}", at_a_time, size(e.memory), f"{e.most}", *hours])
    whole = {name: sum(one.runs * one.estimate.hours[name] for one in found) for name in estimate.GPUS}
    lines = [
        "",
        *columns(body),
        "",
        "  all of them: " + ", ".join(f"{value:,.0f} {name} hours" for name, value in whole.items()),
    ]
    if tight := [one for one in found if one.estimate.images > one.estimate.most]:
        least = min(one.estimate.most for one in tight)
        lines.append(
            f"  {tight[0].task} {tight[0].arm} does not fit: add ARGS=hardware.max_batch_per_device={max(1, least)}"
        )
    return [*lines, "", *(f"  {line}" for line in estimate.about())]


def pad(lines: list[str]) -> list[str]:
    width = max(map(len, lines))
    return [line.ljust(width) for line in lines]


def size(number: float) -> str:
    return amount(number, ("B", "KiB", "MiB", "GiB", "TiB"), 1024)


def as_json(plan: Plan) -> str:
    runs = [
        {"address": run.address, "action": action(run, plan.asked.stale), "state": run.state, "why": why(run)}
        for run in plan.runs
    ]
    cells = [dataclasses.asdict(found) for found in plan.cells]
    whole = {"minutes": plan.minutes, "disk_bytes": plan.disk_bytes, "slots": plan.slots}
    whole["elsewhere"] = [dataclasses.asdict(one) for one in plan.elsewhere]
    return json.dumps({"runs": runs, "cells": cells, **whole}, indent=1)


def check_budget(plan: Plan, budget: float) -> None:
    """Raise UserError where a sweep would take longer than so many minutes, or nobody can say."""
    if plan.minutes is None:
        unknown = next(cell for cell in plan.cells if cell.runs and cell.minutes is None)
        raise UserError(f"BUDGET={budget:g}: how long {unknown.task} {unknown.arm} takes {unknown.source}")
    if plan.minutes > budget:
        raise UserError(
            f"BUDGET={budget:g}: the sweep would take about {plan.minutes:.0f} minutes, {plan.slots} runs at a time: give more, or "
            "ask for less of it (TASK=..., SEEDS=...)"
        )


def main(arguments: list[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["--measure"]:
        print(json.dumps(measure_here(compose(words[1:]))))
        return 0
    about = "What a sweep would do and cost, before anything is trained."
    parser = selection.parser("plan", about, " [BUDGET=minutes]")
    parser.add_argument("--budget", help="minutes; more than that is an error")
    parser.add_argument("--json", action="store_true", help="for machines")
    given = parser.parse_intermixed_args(words)
    budget = selection.minutes(given.budget)
    plan = make(selection.read(given))
    print(as_json(plan) if given.json else table(plan))
    if budget is not None:
        check_budget(plan, budget)
    return 0


if __name__ == "__main__":
    command(main)
