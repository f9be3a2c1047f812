"""A hypothesis of experiments/: run what is missing, one child process per run, then write its report.

    python -m hypotheses.sweep 1 [--scale demo] [--task coco] [--seeds 5] [--arms all] [--jobs N] [hardware=...] [paths.data=...]

Hydra composes each run; this file only starts and watches them. Finished runs are reused, a failed run does not stop the
others, and an interrupted sweep goes on when the same command is typed again. The parent never imports torch.
"""

import argparse
import collections
import contextlib
import dataclasses
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

from hypotheses import attempts, claims, data, experiment, failures, pretrained, record, report, standing
from hypotheses.config import Config
from hypotheses.errors import UserError, one_line
from hypotheses.experiment import Experiment
from hypotheses.run import EXPECTED, check_space
from hypotheses.standing import RECORDED, STALE, cell, heartbeat

POLL = 0.3  # seconds between looks at the children
QUIET = 60.0  # seconds between status lines where there is no terminal to redraw
GRACE = 30.0  # seconds that an interrupted child gets, for its checkpoint, before it is killed
OTHERS = 5.0  # seconds between looks at what other sweeps do
STALES = ("reuse", "rerun")


@dataclasses.dataclass
class Child:
    """A run in progress: its process, the file of its output, and the slot (device) that it holds."""

    config: Config
    process: subprocess.Popen[bytes]
    log: Path
    slot: "Slot"
    started: float
    ooms: int = 0  # processes that the machine had ended for memory when it was started
    beat: dict = dataclasses.field(default_factory=dict)  # its latest heartbeat, and when that was seen
    seen: float = 0.0


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
    stale: str | None = None,
) -> int:
    """Run what is missing, first of the positive control, then of all tasks of the hypothesis unless some are named; the exit code:
    0 if every run is recorded, 1 if some failed. Raises UserError, too where runs of other code are there and `stale` does not say
    whether to reuse them or to run them again."""
    wanted = experiment.wanted(hypothesis, scale, seeds, arms, tasks or hypothesis.tasks)
    configs = [experiment.config_of(scale, task, arm, seed, overrides) for task, arm, seed in wanted]
    check_space(configs[0])
    found = stand(configs)
    if odd := [run for run in found if run.state == standing.CONFLICT]:
        raise UserError(odd[0].why)
    old = [run for run in found if run.state == STALE]
    if old and stale is None:
        raise UserError(
            f"{len(old)} of {len(found)} runs were recorded by other code or software, {old[0].address} {old[0].why}: say STALE=reuse "
            "to take them as they are, or STALE=rerun to run them again (their records move to results/replaced/)"
        )
    if stale == "rerun":
        for run in old:
            record.replace(Path(run.config["paths"]["results"]), run.address)
    taken = {RECORDED} | ({STALE} if stale == "reuse" else set())
    missing = [run for run in found if run.state not in taken]
    slots = make_slots(configs[0], jobs, overrides)
    parts = [f"{len(configs)} runs", f"{len(configs) - len(missing)} recorded", f"{len(missing)} to run"]
    if resumed := sum(run.step > 0 for run in missing):
        parts.append(f"{resumed} of them from a checkpoint")
    print(
        f"hypothesis {hypothesis.hypothesis} at {scale} scale: {', '.join(parts)}, {len(slots)} at a time", flush=True
    )
    if old and stale == "reuse":
        print(f"note: {len(old)} recorded runs were made by other code or software, and are taken as they are")
    return 1 if missing and Work(hypothesis, configs, missing, slots, overrides).run() else 0


def stand(configs: list[Config]) -> list[standing.Standing]:
    """Where the runs stand, with their data made or found."""
    images = {data.depends_on(config): config for config in configs}
    fingerprints = {key: data.prepare(config).fingerprint for key, config in images.items()}
    found = []
    for config in configs:
        start, fingerprint = pretrained.find(config), fingerprints[data.depends_on(config)]
        found.append(standing.of(config, fingerprint, start.sha256 if start else None))
    return found


class Work:
    """The missing runs of a sweep: one per slot at a time, until each is recorded or has failed for good."""

    def __init__(
        self,
        hypothesis: Experiment,
        configs: list[Config],
        missing: list[standing.Standing],
        slots: list[Slot],
        overrides: list[str],
    ):
        self.hypothesis, self.slots, self.overrides = hypothesis, slots, overrides
        self.configs, self.waiting = configs, collections.deque(run.config for run in missing)
        self.expected = {run.address: run.identity for run in missing}
        self.running: list[Child] = []
        self.others: list[Config] = []  # that another sweep is at
        self.failed: dict[str, str] = {}  # class of the failure, by address
        self.tries: collections.Counter[tuple[str, str]] = (
            collections.Counter()
        )  # of an address, after a class of failure
        self.times: dict[str, list[float]] = {}
        self.status = Status()
        self.code, self.looked = record.code_fingerprint(), 0.0

    def run(self) -> dict[str, str]:
        """Returns the classes of the failures, by address."""

        def end(*_: object) -> None:
            raise KeyboardInterrupt

        # a closed terminal or a kill ends the children too, as Ctrl-C does
        before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
        try:
            while self.waiting or self.running or self.others:
                self.start_some()
                time.sleep(POLL)
                for child in [c for c in self.running if c.process.poll() is not None]:
                    self.running.remove(child)
                    self.ended(child)
                for child in self.running:
                    self.watch(child)
                self.look_at_others()
                self.status.show(self)
        except KeyboardInterrupt:
            self.status.clear()
            print("stopping: the runs in progress write a checkpoint; Ctrl-C again to kill them", file=sys.stderr)
            stop(self.running)
            done = sum(record.path(config).exists() for config in self.configs)
            print(
                f"interrupted: {done} of {len(self.configs)} runs done; the same command goes on with the rest",
                file=sys.stderr,
            )
            sys.exit(130)
        finally:
            stop(self.running)
            for number, handler in before.items():
                signal.signal(number, handler)
        return self.failed

    def start_some(self) -> None:
        """Give each free slot a run, unless another sweep has it."""
        free = [slot for slot in self.slots if slot not in [child.slot for child in self.running]]
        while self.waiting and free:
            if record.code_fingerprint() != self.code:
                self.status.line(
                    f"  src/ was changed while the sweep ran: {len(self.waiting)} runs are not begun, so that all are of one "
                    "code; type the same command again when it is as it should be"
                )
                self.failed |= {record.address(config): "code" for config in self.waiting}
                self.waiting.clear()
                return
            config = self.waiting.popleft()
            if record.path(config).exists():
                self.done(config, "by another sweep")
            elif claims.holder(standing.folder(config)):
                self.others.append(config)
            else:
                self.running.append(start(config, free.pop(0), self.overrides, self.expected[record.address(config)]))

    def look_at_others(self) -> None:
        """Take over what another sweep has left."""
        if time.monotonic() - self.looked < OTHERS:
            return
        self.looked = time.monotonic()
        for config in list(self.others):
            if record.path(config).exists() or not claims.holder(standing.folder(config)):
                self.others.remove(config)
                self.waiting.append(config)

    def done(self, config: Config, how: str) -> None:
        metric = self.hypothesis.metrics()[config["task"]["name"]]
        value = record.read(record.path(config))["metrics"][metric]
        self.status.line(f"  {record.address(config)}: {metric} {value:.2f}, {how}")

    def ended(self, child: Child) -> None:
        """Say how a child has ended, and try again what may be."""
        seconds, address = time.monotonic() - child.started, record.address(child.config)
        if child.process.returncode == 0 and record.path(child.config).exists():
            self.times.setdefault(cell(child.config), []).append(seconds)
            self.done(child.config, f"{seconds:.0f} s")
            return
        code, log = child.process.returncode, "\n".join(failures.tail(child.log, 60))
        kind = "hang" if child.beat.get("hang") else failures.classify(code, log, failures.ooms() - child.ooms)
        how = f"no heartbeat for {hang_seconds(child.config):g} s" if kind == "hang" else failures.describe(code, log)
        if kind == failures.BUSY:
            self.others.append(child.config)
            return
        kind = "killed" if kind == failures.STOPPED else kind  # not by this sweep
        with contextlib.suppress(OSError):  # a full disk
            attempts.note_end(Path(child.config["paths"]["results"]), address, how, kind)
        self.tries[address, kind] += 1
        tried, limit = self.tries[address, kind], failures.RETRIES[kind]
        if tried <= limit:
            self.status.line(f"  {address}: {kind.upper()}, {how}; goes on, try {tried} of {limit}")
            self.waiting.appendleft(child.config)
            return
        self.failed[address] = kind
        self.status.line(f"  {address}: FAILED ({kind}), {how}; its log: {child.log}")

    def watch(self, child: Child) -> None:
        """End a child whose heartbeat has not changed for too long. No clock but this process's own is asked."""
        now, beat = time.monotonic(), heartbeat(child.log.parent)
        if beat != child.beat or not child.seen:
            child.beat, child.seen = beat, now
        elif now - child.seen > hang_seconds(child.config) > 0:
            child.process.send_signal(signal.SIGUSR2)  # it writes to its log where it is
            time.sleep(1.0)
            stop([child], grace=0.0)
            child.beat = {"hang": True}


def hang_seconds(config: Config) -> float:
    return float(config["hardware"]["hang_seconds"])


def start(config: Config, slot: Slot, overrides: list[str], identity: str) -> Child:
    """Start the child process of a run, its output in log.txt of the run's folder, after that of earlier attempts. It ends with an
    error where what it composes is no longer of that `identity`."""
    folder = standing.folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    scale, task, backbone = (config[group]["name"] for group in ("scale", "task", "backbone"))
    arguments = experiment.run_overrides(scale, task, backbone, config["seed"])
    log = folder / "log.txt"
    with open(log, "ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "hypotheses.run", *arguments, *slot.overrides, *overrides],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **slot.environment, EXPECTED: identity},
            start_new_session=True,  # Ctrl-C reaches the sweep alone, which then stops its children
        )
    return Child(config, process, log, slot, time.monotonic(), failures.ooms())


def stop(children: list[Child], grace: float = GRACE) -> None:
    """End children and all their processes, kindly first; at once where Ctrl-C is pressed again."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if number == signal.SIGTERM and not grace:
            continue
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.process.pid, number)
        deadline = time.monotonic() + (grace or GRACE)
        with contextlib.suppress(KeyboardInterrupt):
            for child in children:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.process.wait(max(0.1, deadline - time.monotonic()))
    children.clear()


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

    def show(self, work: Work) -> None:
        now = time.monotonic()
        if now - self.printed < (0.5 if self.live else QUIET) or not (work.running or work.others):
            return
        self.printed = now
        beats = [heartbeat(child.log.parent) for child in work.running]
        left = len(work.running) + len(work.waiting) + len(work.others)
        parts = [f"{len(work.configs) - left - len(work.failed)} of {len(work.configs)} finished"]
        for child, beat in zip(work.running, beats, strict=True):
            share = f"{100 * beat['step'] / beat['steps']:.0f} %" if beat else "starting"
            shown = "".join(f" {k} {v}" for k, v in beat.get("shown", {}).items())
            parts.append(f"{cell(child.config)} seed {child.config['seed']} {share}{shown}")
        if work.others:
            parts.append(f"{len(work.others)} by another sweep")
        if work.failed:
            parts.append(f"{len(work.failed)} failed")
        if seconds := time_left(work.running, beats, list(work.waiting), work.times):
            parts.append(f"about {max(1, round(seconds / 60))} min left")
        text = " | ".join(parts)
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            self.stream.write("\r\x1b[K  " + text[: width - 2])
            self.stream.flush()
        else:
            print(f"  {text}", file=self.stream, flush=True)


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
        usage="make sweep HYP=1 [SCALE=demo] [TASK=coco] [SEEDS=5] [ARMS=all] [JOBS=2] [STALE=reuse|rerun] [ARGS='hardware=cpu paths.data=FOLDER']",
    )
    parser.add_argument("hypothesis", help="number of a file in experiments/")
    parser.add_argument("--scale", default="demo", help="demo, pilot or paper")
    parser.add_argument("--task", help="one task of the hypothesis; all by default")
    parser.add_argument("--seeds", type=int, help="a planned look: 5, 10 or 20; the first by default")
    parser.add_argument("--arms", default="registered", help="registered (default), or all: the extra arms too")
    parser.add_argument("--jobs", type=int, help="runs side by side; one per core or GPU by default")
    parser.add_argument("--stale", choices=STALES, help="what to do with records of other code: reuse, or rerun")
    parser.add_argument("overrides", nargs="*", help="hardware=..., hardware.key=..., paths.key=..., resume=any|never")
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
        if override.split("=")[0].split(".")[0] not in ("hardware", "paths", "resume"):
            raise UserError(
                f"{override}: a sweep takes hardware, paths and resume only, the rest is registered; for a variant use "
                f"python -m hypotheses.run {shlex.quote(override)} tag=NAME"
            )
    arms = hypothesis.scales[asked.scale]
    names = arms.all() if asked.arms == "all" else arms.registered()
    tasks = [asked.task] if asked.task else list(hypothesis.tasks)
    code = sweep(hypothesis, asked.scale, seeds, names, asked.jobs, asked.overrides, tasks, asked.stale)
    results = Path(experiment.config_of(asked.scale, tasks[0], arms.control, 0, asked.overrides)["paths"]["results"])
    for bed in report.section(hypothesis, results, asked.scale).verdict.beds:
        if bed.wanted and bed.task in tasks:
            print(
                f"{bed.task}: the SSM arm wins and is the larger one, so it must beat its sham, which is as large, too"
            )
            code |= sweep(
                hypothesis, asked.scale, seeds, list(bed.wanted), asked.jobs, asked.overrides, [bed.task], asked.stale
            )
    print(report.write(hypothesis, results, asked.scale))
    return code


if __name__ == "__main__":
    with one_line():
        try:
            sys.exit(main())
        except KeyboardInterrupt:
            print("interrupted: the same command goes on", file=sys.stderr)
            sys.exit(130)
