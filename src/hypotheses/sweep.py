"""A hypothesis of experiments/: run what is missing, one child process per run, then write its report.

    python -m hypotheses.sweep 1 [--scale demo] [--task coco] [--seeds 5] [--arms all] [--jobs N] [--stale reuse] [--budget MINUTES] [--launcher slurm] [hardware=...] [paths.data=...]

Hydra composes each run; this file only starts and watches them. Finished runs are reused, a failed run does not stop the
others, and an interrupted sweep goes on when the same command is typed again. The parent never imports torch. Where the runs are jobs
of a cluster, slurm.py starts and watches them, and each job is a sweep of one run.
"""

import collections
import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

from hypotheses import attempts, claims, data, experiment, failures, record, report, selection, standing, tracking
from hypotheses.config import Config
from hypotheses.data import preflight
from hypotheses.errors import UserError, command
from hypotheses.experiment import Experiment
from hypotheses.run import EXPECTED, EXPECTED_CODE, already, check_devices, check_space
from hypotheses.selection import Selection
from hypotheses.standing import RECORDED, STALE, cell, heartbeat

POLL = 0.3  # seconds between looks at the children
QUIET = 60.0  # seconds between status lines where there is no terminal to redraw
GRACE = (
    45.0  # seconds that an interrupted child gets, for its checkpoint, before it is killed; torchrun gives its own 30
)
OTHERS = 5.0  # seconds between looks at what other sweeps do
ENDS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # a kill, a closed terminal, a cluster's warning: each as Ctrl-C
LAUNCHERS = ("local", "slurm")


@dataclasses.dataclass
class Child:
    """A run in progress: its process, the file of its output, and the slot (device) that it holds."""

    config: Config
    process: subprocess.Popen[bytes]
    log: Path
    slot: "Slot"
    started: float
    since: int = 0  # bytes that were in the log before it
    ooms: int = 0  # processes that the machine had ended for memory when it was looked at last
    beat: dict = dataclasses.field(default_factory=dict)  # its latest heartbeat, and when that was seen
    seen: float = 0.0
    hung: bool = False  # it was ended for its silence


@dataclasses.dataclass(frozen=True)
class Slot:
    """A place for one run at a time: what its child process gets besides the run itself."""

    number: int
    environment: dict[str, str]
    overrides: list[str]
    python: list[str] = dataclasses.field(default_factory=lambda: [sys.executable])


def sweep(asked: Selection) -> int:
    """Run what is missing, first of the positive control, then of the tasks; the exit code: 0 if every run is recorded, 1 if some
    failed. Raises UserError, too where runs of other code are there and `asked.stale` does not say what to do with them."""
    configs = asked.configs()
    asked.check_pairs(configs)
    check_space(configs[0])
    if asked.launcher == "slurm":
        from hypotheses import slurm  # which imports this file

        slurm.check(configs[0])
    found = standing.of_all(configs)
    if odd := [run for run in found if run.state == standing.CONFLICT]:
        raise UserError(odd[0].why)
    if foreign := [run for run in found if run.foreign]:
        raise UserError(
            f"{len(foreign)} runs were interrupted under other code or software, {foreign[0].address}: {foreign[0].foreign}: say "
            "ARGS=resume=any to go on from there all the same, which the report says, or ARGS=resume=never to begin them anew"
        )
    old = [run for run in found if run.state == STALE]
    if old and asked.stale is None:
        raise UserError(
            f"{len(old)} of {len(found)} runs were recorded by other code or software, {old[0].address} {old[0].why}: say STALE=reuse "
            "to take them as they are, or STALE=rerun to run them again (their records move to results/replaced/)"
        )
    taken = {RECORDED} | ({STALE} if asked.stale == "reuse" else set())
    missing = [run for run in found if run.state not in taken]
    for run in found:
        if run.state in taken:
            clear(run.config)
    if missing and asked.launcher == "local":
        check_devices(missing[0].config)
    if asked.stale == "rerun":
        for run in old:
            with claims.held(standing.folder(run.config)):  # another sweep may have done so meanwhile, and run it again
                if record.path(run.config).exists() and record.stale(record.read(record.path(run.config))):
                    record.replace(Path(run.config["paths"]["results"]), run.address)
    for config in {data.depends_on(run.config): run.config for run in missing}.values():
        preflight.require(config)  # once, before all of them; each then finds what is known
    work, how = work_on(asked, configs, missing)
    parts = [f"{len(configs)} runs", f"{len(configs) - len(missing)} recorded", f"{len(missing)} to run"]
    if resumed := sum(run.step > 0 for run in missing):
        parts.append(f"{resumed} of them from a checkpoint")
    name = f"hypothesis {asked.hypothesis.hypothesis} at {asked.scale} scale"
    print(f"{name}: {', '.join(parts)}, {how}", flush=True)
    if old and asked.stale == "reuse":
        print(f"note: {len(old)} recorded runs were made by other code or software, and are taken as they are")
    with tracking.shared(configs[0]["wandb"] if missing and asked.launcher == "local" else "off"):
        return 1 if missing and work.run() else 0


def work_on(asked: Selection, configs: list[Config], missing: list[standing.Standing]) -> "tuple[Work, str]":
    """The missing runs as work for this machine or for a cluster, and how it is done, in words."""
    if asked.launcher == "slurm":
        from hypotheses import slurm

        at_once = asked.jobs or configs[0]["cluster"]["array_parallelism"]
        work = slurm.Queue(asked.hypothesis, configs, missing, at_once, asked.overrides)
        before = f"{len(work.running)} of them submitted before, " if work.running else ""
        return work, f"{before}{at_once} at a time" if at_once else f"{before}as many at a time as the cluster takes"
    slots = make_slots(configs[0], asked.jobs)
    return Work(asked.hypothesis, configs, missing, slots, asked.overrides), f"{len(slots)} at a time"


class Work:
    """The missing runs of a sweep: one per slot at a time, until each is recorded or has failed for good."""

    pause = POLL

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
        self.running: list[Any] = []  # Child, or of a cluster Job
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
            for number in ENDS:  # a cluster sends several
                signal.signal(number, signal.SIG_IGN)
            raise KeyboardInterrupt

        before = {number: signal.signal(number, end) for number in ENDS}
        try:
            while self.waiting or self.running or self.others:
                self.start_some()
                time.sleep(self.pause)
                self.look()
                self.look_at_others()
                self.status.show(self)
        except KeyboardInterrupt:
            self.status.clear()
            self.interrupt()
            done = sum(record.path(config).exists() for config in self.configs)
            print(
                f"interrupted: {done} of {len(self.configs)} runs done; the same command goes on with the rest",
                file=sys.stderr,
            )
            sys.exit(130)
        finally:
            self.end()
            for number, handler in before.items():
                signal.signal(number, handler)
        return self.failed

    def interrupt(self) -> None:
        print("stopping: the runs in progress write a checkpoint; Ctrl-C again to kill them", file=sys.stderr)
        stop(self.running)

    def end(self) -> None:
        stop(self.running)

    def look(self) -> None:
        """At the children."""
        for child in [c for c in self.running if c.process.poll() is not None]:
            self.running.remove(child)
            self.ended(child)
        for child in self.running:
            self.watch(child)

    def training(self) -> list[Any]:
        """Those of `running` that do."""
        return self.running

    def changed(self) -> bool:
        """Whether the code is no longer what it was when the sweep began; then nothing more is begun."""
        if record.code_fingerprint() == self.code:
            return False
        self.status.line(
            f"  src/ was changed while the sweep ran: {len(self.waiting)} runs are not begun, so that all are of one "
            "code; type the same command again when it is as it should be"
        )
        self.failed |= {record.address(config): "code" for config in self.waiting}
        self.waiting.clear()
        return True

    def start_some(self) -> None:
        """Give each free slot a run, unless another sweep has it."""
        free = [slot for slot in self.slots if slot not in [child.slot for child in self.running]]
        while self.waiting and free:
            if self.changed():
                return
            config = self.waiting.popleft()
            if record.path(config).exists():
                self.by_another(config)
            elif claims.holder(standing.folder(config)):
                self.others.append(config)
            else:
                address = record.address(config)
                again = any(tried == address for tried, _ in self.tries)
                overrides = [o for o in self.overrides if not (again and o.startswith("resume="))]
                self.running.append(start(config, free.pop(0), overrides, self.expected[address], self.code))

    def look_at_others(self) -> None:
        """Take over what another sweep has left."""
        if time.monotonic() - self.looked < OTHERS:
            return
        self.looked = time.monotonic()
        for config in list(self.others):
            if record.path(config).exists() or not claims.holder(standing.folder(config)):
                self.others.remove(config)
                self.waiting.append(config)

    def by_another(self, config: Config) -> None:
        """Take what another sweep has recorded meanwhile, if it is what this one wants."""
        address, found = record.address(config), record.read(record.path(config))
        odd = record.stale(found) or (["configuration or data"] if found["identity"] != self.expected[address] else [])
        if odd:
            self.failed[address] = "input"
            self.status.line(f"  {address}: FAILED (input), recorded by another sweep with other {', '.join(odd)}")
        else:
            self.done(config, "by another sweep")

    def done(self, config: Config, how: str) -> None:
        clear(config)
        metric = self.hypothesis.metrics()[config["task"]["name"]]
        value = record.read(record.path(config))["metrics"][metric]
        self.status.line(f"  {record.address(config)}: {metric} {value:.2f}, {how}")

    def ended(self, child: Child) -> None:
        """Say how a child has ended, and try again what may be."""
        with contextlib.suppress(ProcessLookupError):  # what it has left
            os.killpg(child.process.pid, signal.SIGKILL)
        seconds, address = time.monotonic() - child.started, record.address(child.config)
        if child.process.returncode == 0 and record.path(child.config).exists():
            if any(already(child.process.pid) in line for line in failures.tail(child.log, 3, child.since)):
                self.by_another(child.config)
                return
            self.times.setdefault(cell(child.config), []).append(seconds)
            self.done(child.config, f"{seconds:.0f} s")
            return
        code, log = child.process.returncode, "\n".join(failures.tail(child.log, 60, child.since))
        kind = "hang" if child.hung else failures.classify(code, log, failures.ooms() - child.ooms)
        how = f"no heartbeat for {hang_seconds(child.config):g} s" if kind == "hang" else failures.describe(code, log)
        if kind == failures.BUSY:
            self.others.append(child.config)
            return
        kind = "killed" if kind == failures.STOPPED else kind  # not by this sweep
        with contextlib.suppress(OSError):  # a full disk
            attempts.note_end(Path(child.config["paths"]["results"]), address, how, kind)
        self.failed_once(child.config, kind, how, child.log, failures.RETRIES[kind])

    def failed_once(self, config: Config, kind: str, how: str, log: Path, limit: int) -> None:
        """Try a run again, unless it was tried so often after a failure of this class."""
        address = record.address(config)
        self.tries[address, kind] += 1
        if (tried := self.tries[address, kind]) <= limit:
            self.status.line(f"  {address}: {kind.upper()}, {how}; goes on, try {tried} of {limit}")
            self.waiting.appendleft(config)
            return
        self.failed[address] = kind
        self.status.line(f"  {address}: FAILED ({kind}), {how}; its log: {log}")

    def watch(self, child: Child) -> None:
        """End a child whose heartbeat has not changed for too long. No clock but this process's own is asked."""
        now, beat, child.ooms = time.monotonic(), heartbeat(child.log.parent), failures.ooms()
        if beat != child.beat or not child.seen:
            child.beat, child.seen = beat, now
        elif now - child.seen > hang_seconds(child.config) > 0:
            ask_where(child)
            stop([child], grace=0.0)
            child.hung = True


def clear(config: Config) -> None:
    """Remove the checkpoints of a recorded run, which remain where it was killed between its record and its end."""
    shutil.rmtree(standing.folder(config) / "checkpoints", ignore_errors=True)


def ask_where(child: Child) -> None:
    """Let a run write to its log where it is: the process that holds it, which a launcher of several may have started."""
    said = claims.holder(child.log.parent) or {}
    pid = said.get("pid") if said.get("place") == claims.place() else None
    if pid is None and child.config["hardware"]["devices"] == 1:
        pid = child.process.pid
    if pid:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGUSR2)
        time.sleep(1.0)


def hang_seconds(config: Config) -> float:
    return float(config["hardware"]["hang_seconds"])


def start(config: Config, slot: Slot, overrides: list[str], identity: str, code: str) -> Child:
    """Start the child process of a run, its output in log.txt of the run's folder, after that of earlier attempts. It ends with an
    error where what it composes is no longer of that `identity`, or its code another one."""
    folder = standing.folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    scale, task = config["scale"]["name"], config["task"]["name"]
    arguments = experiment.run_overrides(scale, task, record.arm(config), config["seed"])
    log = folder / "log.txt"
    with open(log, "ab") as output:
        since = output.tell()
        process = subprocess.Popen(
            [*slot.python, "-m", "hypotheses.run", *arguments, *slot.overrides, *overrides],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **slot.environment, EXPECTED: identity, EXPECTED_CODE: code},
            start_new_session=True,  # Ctrl-C reaches the sweep alone, which then stops its children
        )
    return Child(config, process, log, slot, time.monotonic(), since, failures.ooms())


def stop(children: list[Child], grace: float = GRACE) -> None:
    """End children and all their processes, kindly first; at once where Ctrl-C is pressed again."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if number == signal.SIGTERM and not grace:
            continue
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                if number == signal.SIGTERM:  # to it alone: its loading processes go on until it has its checkpoint
                    child.process.send_signal(number)
                else:
                    os.killpg(child.process.pid, number)
        deadline = time.monotonic() + (grace or GRACE)
        try:
            for child in children:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.process.wait(max(0.1, deadline - time.monotonic()))
        except KeyboardInterrupt:
            print("killing them: they go on from the checkpoints that they have", file=sys.stderr)
    children.clear()


def make_slots(config: Config, jobs: int | None) -> list[Slot]:
    """Places for runs side by side: one per GPU, or one per core with a thread each; a single one where a run takes
    several devices."""
    hardware = config["hardware"]
    if hardware["devices"] != 1 or hardware["nodes"] != 1:
        return [Slot(0, {}, [])]
    if gpus := visible_gpus() if hardware["accelerator"] != "cpu" else []:
        return [Slot(i, {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]}, []) for i in range(jobs or len(gpus))]
    cores = len(os.sched_getaffinity(0))
    cores = min(cores, int(os.environ.get("SLURM_CPUS_ON_NODE") or cores))
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
        training = work.training()
        beats = [heartbeat(child.log.parent) for child in training]
        left = len(work.running) + len(work.waiting) + len(work.others)
        parts = [f"{len(work.configs) - left - len(work.failed)} of {len(work.configs)} finished"]
        for child, beat in zip(training, beats, strict=True):
            share = f"{100 * beat['step'] / beat['steps']:.0f} %" if beat else "starting"
            shown = "".join(f" {k} {v}" for k, v in beat.get("shown", {}).items())
            parts.append(f"{cell(child.config)} seed {child.config['seed']} {share}{shown}")
        pending = [job.config for job in work.running if job not in training]
        if pending:
            parts.append(f"{len(pending)} in the queue")
        if work.others:
            parts.append(f"{len(work.others)} by another sweep")
        if work.failed:
            parts.append(f"{len(work.failed)} failed")
        seconds, unknown = time_left(training, beats, [*work.waiting, *pending], work.times)
        if seconds:
            parts.append(f"{'at least' if unknown else 'about'} {max(1, round(seconds / 60))} min left")
        text = " | ".join(parts)
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            self.stream.write("\r\x1b[K  " + text[: width - 2])
            self.stream.flush()
        else:
            print(f"  {text}", file=self.stream, flush=True)


def time_left(
    running: list[Any], beats: list[dict], waiting: list[Config], times: dict[str, list[float]]
) -> tuple[float, int]:
    """Seconds until the last run ends, from the runs of the same cell so far; and how many runs are not in them, since none of their
    cell has been seen."""
    left, unknown, known = 0.0, 0, {name: sum(seconds) / len(seconds) for name, seconds in times.items()}
    for child, beat in zip(running, beats, strict=True):
        if not beat or beat["seconds_left"] is None:
            unknown += 1
            continue
        left += beat["seconds_left"]
        known.setdefault(cell(child.config), time.monotonic() - child.started + beat["seconds_left"])
    for config in waiting:
        left += known.get(cell(config), 0.0)
        unknown += cell(config) not in known
    return left / max(1, len(running)), unknown


def parse(arguments: list[str]) -> tuple[Selection, float | None]:
    """What is asked for, and the budget in minutes."""
    about = "Run what is missing of a hypothesis, then judge it and write its report."
    parser = selection.parser("sweep", about, " [BUDGET=minutes] [LAUNCHER=slurm]")
    parser.add_argument("--budget", help="minutes; a sweep that would take longer is not begun")
    parser.add_argument("--launcher", default="local", help="local (default), or slurm: the runs are jobs of a cluster")
    given = parser.parse_intermixed_args(arguments)
    asked = dataclasses.replace(selection.read(given), launcher=given.launcher)
    if asked.launcher not in LAUNCHERS:
        raise UserError(f"LAUNCHER={asked.launcher}: choose one of {', '.join(LAUNCHERS)}, or leave it out")
    cluster = [o for o in asked.overrides if o.split("=")[0].split(".")[0] == "cluster"]
    if cluster and asked.launcher == "local":
        raise UserError(f"{cluster[0]}: it is about jobs of a cluster: add LAUNCHER=slurm, or leave it out")
    if given.budget is not None and asked.launcher != "local":
        raise UserError(
            f"BUDGET={given.budget}: minutes are known of this machine alone: leave it out, and see cluster.time"
        )
    return asked, selection.minutes(given.budget)


def main(arguments: list[str] | None = None) -> int:
    from hypotheses import plan  # which imports this file

    asked, budget = parse(sys.argv[1:] if arguments is None else arguments)
    if budget is not None:
        plan.check_budget(plan.make(asked), budget)
    code = sweep(asked)
    config = asked.configs()[0]
    results = Path(config["paths"]["results"])
    for bed in report.section(asked.hypothesis, results, asked.scale).verdict.beds:
        if bed.wanted and bed.task in asked.tasks:
            print(
                f"{bed.task}: the SSM arm wins and is the larger one, so it must beat its sham, which is as large, too"
            )
            if budget is not None:
                plan.check_budget(
                    plan.make(dataclasses.replace(asked, arms=list(bed.wanted), tasks=[bed.task])), budget
                )
            code |= sweep(dataclasses.replace(asked, arms=list(bed.wanted), tasks=[bed.task]))
    print(report.write(asked.hypothesis, results, asked.scale))
    if config["wandb"] != "off":
        from hypotheses import publish

        found = report.section(asked.hypothesis, results, asked.scale)
        tracking.tell(lambda: publish.verdict_story(found, results), config["wandb"], results)
    return code


if __name__ == "__main__":
    command(main, "interrupted: the same command goes on")
