"""A hypothesis of experiments/: run what is missing, one child process per run, then write its report.

    python -m hypotheses.sweep 1 [--scale demo] [--task coco] [--seeds 5] [--arms all] [--jobs N] [hardware=...] [paths.data=...]

Hydra composes each run; this file only starts and watches them. Finished runs are reused, a failed run does not stop the
others, and an interrupted sweep goes on when the same command is typed again. The parent never imports torch.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from hypotheses import data, experiment, pretrained, record, report
from hypotheses.config import Config
from hypotheses.errors import UserError, one_line
from hypotheses.experiment import Experiment
from hypotheses.run import check_space, only_one

POLL = 0.3  # seconds between looks at the children
QUIET = 60.0  # seconds between status lines where there is no terminal to redraw
GRACE = 30.0  # seconds that an interrupted child gets before it is killed


@dataclasses.dataclass
class Child:
    """A run in progress: its process, the file of its output, and the slot (device) that it holds."""

    config: Config
    process: subprocess.Popen[bytes]
    log: Path
    slot: "Slot"
    started: float


@dataclasses.dataclass(frozen=True)
class Slot:
    """A place for one run at a time: what its child process gets besides the run itself."""

    number: int
    environment: dict[str, str]
    overrides: list[str]


def sweep(
    hypothesis: Experiment,
    scale: str,
    seeds: int,
    arms: list[str],
    jobs: int | None,
    overrides: list[str],
    tasks: Iterable[str] | None = None,
) -> int:
    """Run what is missing, first of the positive control, then of all tasks of the hypothesis unless some are named; the exit code:
    0 if every run is recorded, 1 if some failed. Raises UserError."""
    control = hypothesis.positive_control
    wanted = [(control.task, *run) for run in hypothesis.memory_runs(scale)] if control else []
    wanted += [(task, arm, seed) for seed in range(seeds) for task in tasks or hypothesis.tasks for arm in arms]
    configs = [experiment.config_of(scale, task, arm, seed, overrides) for task, arm, seed in wanted]
    check_space(configs[0])
    with only_one(Path(configs[0]["paths"]["outputs"]), "sweep"):
        return run_missing(hypothesis, scale, configs, jobs, overrides)


def run_missing(
    hypothesis: Experiment, scale: str, configs: list[Config], jobs: int | None, overrides: list[str]
) -> int:
    """What `sweep` does while it holds the lock."""
    images = {data.depends_on(config): config for config in configs}
    fingerprints = {key: data.prepare(config).fingerprint for key, config in images.items()}
    starts = [pretrained.find(config) for config in configs]
    found = [
        record.find(config, fingerprints[data.depends_on(config)], start.sha256 if start else None)
        for config, start in zip(configs, starts, strict=True)
    ]
    missing = [config for config, done in zip(configs, found, strict=True) if not done]
    code = record.code_fingerprint()
    other_code = [done for done in found if done and done["provenance"]["code"] != code]
    slots = make_slots(configs[0], jobs, overrides)
    print(
        f"hypothesis {hypothesis.hypothesis} at {scale} scale: {len(configs)} runs, "
        f"{len(configs) - len(missing)} recorded, {len(missing)} to run, {len(slots)} at a time",
        flush=True,
    )
    if other_code:
        print(
            f"note: {len(other_code)} recorded runs were made by other code, {other_code[0]['address']} first; "
            f"they are reused; to run them again, delete their records in {configs[0]['paths']['results']}/records"
        )
    failed = run_all(hypothesis, configs, missing, slots, overrides) if missing else []
    return 1 if failed else 0


def run_all(
    hypothesis: Experiment, configs: list[Config], missing: list[Config], slots: list[Slot], overrides: list[str]
) -> list[str]:
    """Run the missing ones of the configs, one per slot at a time; return the addresses of those that failed."""
    waiting, running, failed = list(missing), [], []
    total, times, status = len(configs), {}, Status()

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    # a closed terminal or a kill ends the children too, as Ctrl-C does
    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        while waiting or running:
            free = [slot for slot in slots if slot not in [child.slot for child in running]]
            while waiting and free:
                running.append(start(hypothesis, waiting.pop(0), free.pop(0), overrides))
            time.sleep(POLL)
            for child in [c for c in running if c.process.poll() is not None]:
                running.remove(child)
                seconds = time.monotonic() - child.started
                address = record.address(child.config)
                if child.process.returncode == 0 and record.path(child.config).exists():
                    times.setdefault(cell(child.config), []).append(seconds)
                    metric = hypothesis.metrics()[child.config["task"]["name"]]
                    value = record.read(record.path(child.config))["metrics"][metric]
                    status.line(f"  {address}: {metric} {value:.2f}, {seconds:.0f} s")
                else:
                    failed.append(address)
                    status.line(f"  {address}: FAILED, {why(child)}; its log: {child.log}")
            status.show(running, waiting, times, total)
    except KeyboardInterrupt:
        status.clear()
        stop(running)
        done = sum(record.path(config).exists() for config in configs)
        print(f"interrupted: {done} of {total} runs done; the same command goes on with the rest", file=sys.stderr)
        sys.exit(130)
    finally:
        stop(running)
        for number, handler in before.items():
            signal.signal(number, handler)
    return failed


def start(hypothesis: Experiment, config: Config, slot: Slot, overrides: list[str]) -> Child:
    """Start the child process of a run, its output in log.txt of the run's folder."""
    folder = Path(config["paths"]["outputs"], record.address(config))
    folder.mkdir(parents=True, exist_ok=True)
    for old in ("heartbeat.json", "metrics.jsonl"):
        (folder / old).unlink(missing_ok=True)
    scale, task, backbone = (config[group]["name"] for group in ("scale", "task", "backbone"))
    arguments = experiment.run_overrides(scale, task, backbone, config["seed"])
    log = folder / "log.txt"
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "hypotheses.run", *arguments, *slot.overrides, *overrides],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **slot.environment},
            start_new_session=True,  # Ctrl-C reaches the sweep alone, which then stops its children
        )
    return Child(config, process, log, slot, time.monotonic())


def stop(children: list[Child]) -> None:
    """End children and all their processes, kindly first."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.process.pid, number)
        deadline = time.monotonic() + GRACE
        for child in children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.1, deadline - time.monotonic()))
    children.clear()


def why(child: Child) -> str:
    """How a run failed, in a few words: the signal, or the last line of its log."""
    code = child.process.returncode
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    lines = [line.strip() for line in child.log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ") if lines else f"exit code {code}"


def make_slots(config: Config, jobs: int | None, overrides: list[str]) -> list[Slot]:
    """Places for runs side by side: one per GPU, or one per core with a thread each; a single one where a run takes
    several devices. `overrides` of the user come after a slot's own."""
    hardware = config["hardware"]
    if hardware["devices"] != 1 or hardware["nodes"] != 1:
        return [Slot(0, {}, [])]
    if gpus := visible_gpus() if hardware["accelerator"] != "cpu" else []:
        return [Slot(i, {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]}, []) for i in range(jobs or len(gpus))]
    cores = len(os.sched_getaffinity(0))
    number = jobs or cores
    threads = hardware["threads"] or max(1, cores // number)
    return [Slot(i, {"OMP_NUM_THREADS": str(threads)}, [f"hardware.threads={threads}"]) for i in range(number)]


def visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use, asked of the driver's own tool: importing torch takes seconds."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu.strip() for gpu in visible.split(",") if gpu.strip()]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return [str(i) for i in range(listed.stdout.count("GPU "))] if listed.returncode == 0 else []


class Status:
    """One line about what is running, redrawn on a terminal, printed now and then elsewhere."""

    def __init__(self) -> None:
        self.stream: IO[str] = sys.stdout
        self.live, self.printed = self.stream.isatty(), time.monotonic()

    def clear(self) -> None:
        if self.live:
            self.stream.write("\r\x1b[K")
            self.stream.flush()

    def line(self, text: str) -> None:
        self.clear()
        print(text, file=self.stream, flush=True)

    def show(self, running: list[Child], waiting: list[Config], times: dict[str, list[float]], total: int) -> None:
        now = time.monotonic()
        if now - self.printed < (0.5 if self.live else QUIET) or not running:
            return
        self.printed = now
        beats = [heartbeat(child) for child in running]
        parts = [f"{total - len(running) - len(waiting)} of {total} finished"]
        for child, beat in zip(running, beats, strict=True):
            share = f"{100 * beat['step'] / beat['steps']:.0f} %" if beat else "starting"
            shown = "".join(f" {k} {v}" for k, v in beat.get("shown", {}).items())
            parts.append(f"{cell(child.config)} seed {child.config['seed']} {share}{shown}")
        if left := time_left(running, beats, waiting, times):
            parts.append(f"about {max(1, round(left / 60))} min left")
        text = " | ".join(parts)
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            self.stream.write("\r\x1b[K  " + text[: width - 2])
            self.stream.flush()
        else:
            print(f"  {text}", file=self.stream, flush=True)


def cell(config: Config) -> str:
    """The runs that take about as long as each other: those of a task and arm."""
    return f"{config['task']['name']} {config['backbone']['name']}"


def heartbeat(child: Child) -> dict:
    with contextlib.suppress(OSError, ValueError):
        return json.loads((child.log.parent / "heartbeat.json").read_text())
    return {}


def time_left(
    running: list[Child], beats: list[dict], waiting: list[Config], times: dict[str, list[float]]
) -> float | None:
    """Seconds until the last run ends, from the runs of the same cell so far; None until every cell has been seen."""
    left, known = 0.0, {name: sum(seconds) / len(seconds) for name, seconds in times.items()}
    for child, beat in zip(running, beats, strict=True):
        if not beat or beat["seconds_left"] is None:
            return None
        left += beat["seconds_left"]
        known.setdefault(cell(child.config), time.monotonic() - child.started + beat["seconds_left"])
    for config in waiting:
        if cell(config) not in known:
            return None
        left += known[cell(config)]
    return left / max(1, len(running))


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make sweep HYP=1",
        description="Run what is missing of a hypothesis, then judge it and write its report.",
        usage="make sweep HYP=1 [SCALE=demo] [TASK=coco] [SEEDS=5] [ARMS=all] [JOBS=2] [ARGS='hardware=cpu paths.data=FOLDER']",
    )
    parser.add_argument("hypothesis", help="number of a file in experiments/")
    parser.add_argument("--scale", default="demo", help="demo, pilot or paper")
    parser.add_argument("--task", help="one task of the hypothesis; all by default")
    parser.add_argument("--seeds", type=int, help="a planned look: 5, 10 or 20; the first by default")
    parser.add_argument("--arms", default="registered", help="registered (default), or all: the extra arms too")
    parser.add_argument("--jobs", type=int, help="runs side by side; one per core or GPU by default")
    parser.add_argument("overrides", nargs="*", help="hardware=..., hardware.key=..., paths.key=...")
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    asked = parse(sys.argv[1:] if arguments is None else arguments)
    hypothesis = experiment.load(asked.hypothesis)
    report.check_scale(hypothesis, asked.scale)
    seeds = hypothesis.looks[0] if asked.seeds is None else asked.seeds
    if seeds not in hypothesis.looks:
        planned = ", ".join(map(str, hypothesis.looks))
        raise UserError(f"SEEDS={seeds} is not a planned look; the registered ones are {planned}")
    if asked.arms not in ("registered", "all"):
        raise UserError(f"ARMS={asked.arms}: say all for the extra arms too, or leave it out")
    if asked.task is not None and asked.task not in hypothesis.tasks:
        raise UserError(
            f"TASK={asked.task}: hypothesis {hypothesis.hypothesis} is about {', '.join(hypothesis.tasks)}: choose one, or leave "
            "it out"
        )
    if asked.jobs is not None and asked.jobs < 1:
        raise UserError(f"JOBS={asked.jobs}: give a number from 1")
    for override in asked.overrides:
        if override.split("=")[0].split(".")[0] not in ("hardware", "paths"):
            raise UserError(
                f"{override}: a sweep takes hardware and paths only, the rest is registered; for a variant use "
                f"python -m hypotheses.run {shlex.quote(override)} tag=NAME"
            )
    arms = hypothesis.scales[asked.scale]
    names = arms.all() if asked.arms == "all" else arms.registered()
    tasks = [asked.task] if asked.task else list(hypothesis.tasks)
    code = sweep(hypothesis, asked.scale, seeds, names, asked.jobs, asked.overrides, tasks)
    results = Path(experiment.config_of(asked.scale, tasks[0], arms.control, 0, asked.overrides)["paths"]["results"])
    for bed in report.section(hypothesis, results, asked.scale).verdict.beds:
        if bed.wanted and bed.task in tasks:
            print(
                f"{bed.task}: the SSM arm wins and is the larger one, so it must beat its sham, which is as large, too"
            )
            code |= sweep(hypothesis, asked.scale, seeds, list(bed.wanted), asked.jobs, asked.overrides, [bed.task])
    print(report.write(hypothesis, results, asked.scale))
    return code


if __name__ == "__main__":
    with one_line():
        try:
            sys.exit(main())
        except KeyboardInterrupt:
            print("interrupted: the same command goes on", file=sys.stderr)
            sys.exit(130)
