"""The runs of a sweep as jobs of Slurm: make sweep HYP=1 LAUNCHER=slurm.

What is missing is submitted as one job array, through submitit, in the order of the sweep. A job is a sweep of one run on its node: there
the run is started, watched, classed and tried again as it is elsewhere. Before Slurm takes the node away the run writes a checkpoint; the
job goes back into the queue, and the run on from there. outputs/<address>/slurm.json names the latest job of a run, so that none is
submitted twice. docs/clusters.md says more.
"""

import contextlib
import dataclasses
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from hypotheses import attempts, claims, failures, record, standing
from hypotheses.config import Config
from hypotheses.errors import BusyError, UserError
from hypotheses.experiment import Experiment
from hypotheses.record import write_aside
from hypotheses.sweep import ENDS, Slot, Work, make_slots

PAUSE, LOOK = 2.0, 10.0  # seconds between looks at the records, and at the queue
RUNNING, PENDING = "RUNNING", "PENDING"
OVER = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
}  # fmt: skip


# ---- what Slurm says -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Entry:
    """A job in the queue; without a state where nothing is known of it."""

    state: str
    nodes: str = ""
    reason: str = ""

    @property
    def live(self) -> bool:
        return bool(self.state) and self.state not in OVER

    def __str__(self) -> str:
        if not self.state:
            return f"not known ({self.reason})"
        if self.state == PENDING:
            return f"{self.state} ({self.reason})"
        return f"{self.state} on {self.nodes}" if self.nodes and self.live else self.state


def ask(*command: str) -> str:
    """What a command of Slurm prints. Raises UserError where it cannot be asked."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, start_new_session=True)
    except FileNotFoundError as error:
        raise UserError(f"no {command[0]} on this machine") from error
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{command[0]} does not answer") from error
    if done.returncode:
        raise UserError(f"{command[0]}: {(failures.lines_of(done.stderr) or ['failed'])[-1]}")
    return done.stdout


def queue(jobs: Iterable[str]) -> dict[str, Entry]:
    """Of those jobs that Slurm still knows; some minutes after its end it forgets one. Raises UserError where it cannot be asked."""
    arrays = sorted({job.split("_")[0] for job in jobs})
    if not arrays:
        return {}
    options = ["--noheader", "--array", "--states=all", "--format=%i|%T|%N|%r"]
    try:
        said = ask("squeue", *options, f"--jobs={','.join(arrays)}")
    except UserError as error:
        if "Invalid job id" in str(error):
            return {}
        raise
    rows = [line.split("|", 3) for line in said.splitlines() if line.count("|") >= 3]
    return {job.strip(): Entry(*(word.strip() for word in words)) for job, *words in rows}


def accounted(job: str) -> str:
    """The last state of a job that is in the queue no more; "" where nobody has kept accounts."""
    with contextlib.suppress(UserError):
        return (ask("sacct", "-nXP", f"--jobs={job}", "--format=State").split() or [""])[0]
    return ""


def note(config: Config) -> dict[str, Any]:
    """What slurm.json says of the latest job of a run; empty where there was none."""
    with contextlib.suppress(OSError, ValueError):
        said = json.loads((standing.folder(config) / "slurm.json").read_text())
        return said if isinstance(said, dict) and {"job", "identity", "code"} <= said.keys() else {}
    return {}


def entries(configs: Iterable[Config]) -> dict[str, tuple[str, Entry]]:
    """The latest job of each run that had one and is not recorded, by address, and what is said of it: nothing of those that were
    forgotten, and why nothing is known where Slurm cannot be asked."""
    jobs = {record.address(c): said["job"] for c in configs if (said := note(c)) and not record.path(c).exists()}
    try:
        found = queue(jobs.values())
    except UserError as error:
        return {address: (job, Entry("", reason=str(error))) for address, job in jobs.items()}
    return {address: (job, found[job]) for address, job in jobs.items() if job in found}


# ---- submitting ------------------------------------------------------------------------------------------------------


def check(config: Config) -> None:
    """Raise UserError where nothing can be submitted from here, or not as it is asked for."""
    for name in ("sbatch", "srun", "squeue", "scontrol"):
        if not shutil.which(name):
            raise UserError(
                f"LAUNCHER=slurm: no {name} on this machine: type it where Slurm's commands are, as on a login node, or leave LAUNCHER out"
            )
    parameters(config, 1)


def parameters(config: Config, at_once: int) -> dict[str, Any]:
    """What submitit is asked for a job of a run."""
    cluster, hardware = config["cluster"], config["hardware"]
    gpus = cluster["gpus_per_node"]
    if gpus is None and hardware["accelerator"] == "gpu":
        gpus = hardware["devices"]
        if gpus == -1:
            raise UserError(
                f"hardware={hardware['name']} takes all GPUs of a node: say how many, cluster.gpus_per_node=8"
            )
    keys = ("partition", "account", "qos", "constraint", "time", "cpus_per_task", "mem")
    asked = {key: cluster[key] for key in keys} | {"gpus_per_node": gpus}
    return {key: value for key, value in asked.items() if value is not None} | {
        "job_name": "hypotheses",
        "nodes": hardware["nodes"],
        "ntasks_per_node": 1,
        "array_parallelism": at_once,
        "stderr_to_stdout": True,
        "srun_args": ["--nodes=1", "--ntasks=1"],
        # submitit's own is SIGUSR2, on which a run says where it is
        "additional_parameters": {"requeue": True, "signal": f"USR1@{cluster['signal']}"}
        | (cluster["parameters"] or {}),
    }


def submit(
    hypothesis: Experiment, runs: list[standing.Standing], overrides: list[str], code: str, at_once: int
) -> list[str]:
    """Submit runs as one job array; the names of their jobs. Raises UserError."""
    import submitit
    from submitit.core.utils import FailedJobError

    folder = folder_of(runs[0].config)
    executor = submitit.SlurmExecutor(folder)
    executor.update_parameters(**parameters(runs[0].config, at_once))
    many = [[value] * len(runs) for value in (hypothesis, overrides, code)]
    with undisturbed():
        try:
            jobs = [job.job_id for job in executor.map_array(work, runs, *many)]
        except FailedJobError as error:
            lines = failures.lines_of(str(error))
            said = [
                line.split(word, 1)[1] for word in ("fatal: ", "error: ") for line in lines if word in line
            ] or lines
            raise UserError(f"sbatch refuses: {said[0]}; see conf/cluster/ for what is asked") from error
        for run, job in zip(runs, jobs, strict=True):
            said = {"job": job, "identity": run.identity, "code": code, "submitted": attempts.now()}
            write_aside(standing.folder(run.config) / "slurm.json", json.dumps(said) + "\n")
    return jobs


def folder_of(config: Config) -> Path:
    """Of the scripts, logs and results of jobs."""
    return Path(config["paths"]["outputs"], "slurm")


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Between a submission and its note no signal ends this process."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, *ENDS)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---- in a job --------------------------------------------------------------------------------------------------------


def work(run: standing.Standing, hypothesis: Experiment, overrides: list[str], code: str) -> dict[str, str]:
    """What a job does: make the run, on this node; the class of its failure by its address, or nothing. A job that was asked to
    stop goes back into the queue, unless it is Slurm that ends it."""
    for number in (signal.SIGTERM, signal.SIGUSR1):  # submitit's handlers; the work has its own
        signal.signal(number, signal.SIG_IGN)
    restarts, config = int(os.environ.get("SLURM_RESTART_COUNT", 0)), run.config
    if restarts > config["cluster"]["max_requeues"]:
        how = f"went back into the queue {restarts} times, more than cluster.max_requeues allows"
        print(f"  {run.address}: {how}", flush=True)
        file = attempts.path(Path(config["paths"]["results"]), run.address)
        attempts.add(file, begun=attempts.now())
        attempts.add(file, ended=attempts.now(), how=how, failure="killed")
        return {run.address: "killed"}
    overrides = [o for o in overrides if not (restarts and o.startswith("resume="))]
    alone = Work(hypothesis, [config], [run], [slot(config)], overrides)
    alone.code = code
    try:
        return alone.run()
    except SystemExit:
        job = os.environ["SLURM_JOB_ID"]
        with contextlib.suppress(UserError):  # whoever watches submits it again
            if ask("squeue", "--noheader", f"--jobs={job}", "--format=%T").strip() == RUNNING:
                print(f"  {run.address}: back into the queue", flush=True)
                ask("scontrol", "requeue", job)
        raise


def slot(config: Config) -> Slot:
    """All that the job has."""
    if config["hardware"]["nodes"] == 1:
        return make_slots(config, 1)[0]
    return Slot(0, {}, [], torchrun(config["hardware"]["nodes"], config["hardware"]["devices"]))


def torchrun(nodes: int, devices: int) -> list[str]:
    """The command that starts torchrun on every node of this job, where they meet at this one."""
    job = os.environ["SLURM_JOB_ID"]
    where = f"{socket.gethostname()}:{20_000 + int(job) % 10_000}"
    tasks = ["--overlap", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    each = ["--nnodes", f"{nodes}", "--nproc-per-node", "gpu" if devices == -1 else f"{devices}"]
    meet = ["--rdzv-backend", "c10d", "--rdzv-id", job, "--rdzv-endpoint", where]
    # Slurm's warning would end torchrun: its processes are told by the SIGTERM that it passes on
    deaf = ["bash", "-c", 'trap "" USR1; exec "$@"', "bash"]
    return ["srun", *tasks, *deaf, sys.executable, "-m", "torch.distributed.run", *each, *meet]


# ---- a sweep ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Job:
    """A run that was submitted: its job, the file of its output, and what Slurm said of it last."""

    config: Config
    name: str
    log: Path
    started: float
    entry: Entry = Entry(PENDING)
    misses: int = 0  # looks in succession that did not find it alive

    @property
    def result(self) -> Path:
        return folder_of(self.config) / f"{self.name}_0_result.pkl"

    @property
    def output(self) -> Path:
        return folder_of(self.config) / f"{self.name}_0_log.out"


class Queue(Work):
    """The missing runs of a sweep as jobs, of which `at_once` run at a time; None for as many as the cluster takes."""

    pause = PAUSE

    def __init__(
        self,
        hypothesis: Experiment,
        configs: list[Config],
        missing: list[standing.Standing],
        at_once: int | None,
        overrides: list[str],
    ):
        super().__init__(hypothesis, configs, missing, [], overrides)
        self.at_once, self.asked, self.silent = at_once, -math.inf, False
        self.adopt()

    def adopt(self) -> None:
        """Take over the jobs that an earlier sweep has submitted."""
        found = entries(self.waiting)
        for config in list(self.waiting):
            job, entry = found.get(record.address(config), ("", Entry("COMPLETED")))
            if not entry.state:
                raise UserError(entry.reason)
            if not entry.live:
                continue
            said = note(config)
            if (said["identity"], said["code"]) != (self.expected[record.address(config)], self.code):
                raise UserError(
                    f"{record.address(config)} is in Slurm's queue as job {job}, of other code, configuration or data: wait for it, or "
                    f"scancel {job}"
                )
            self.waiting.remove(config)
            self.running.append(Job(config, job, standing.folder(config) / "log.txt", time.monotonic(), entry))

    def start_some(self) -> None:
        """Submit what waits. Where only so many may run at once, what comes later waits until nothing of the sweep is left in the queue:
        Slurm counts them by array."""
        if not self.waiting or (self.at_once and self.running) or self.changed():
            return
        with contextlib.suppress(BusyError), claims.held(folder_of(self.configs[0]), "submission"):
            self.adopt()
            ready = []
            while self.waiting:
                config = self.waiting.popleft()
                if record.path(config).exists():
                    self.by_another(config)
                elif claims.holder(standing.folder(config)):
                    self.others.append(config)
                else:
                    ready.append(
                        standing.Standing(config, standing.WAITING, identity=self.expected[record.address(config)])
                    )
            if ready:
                self.submit(ready)

    def submit(self, ready: list[standing.Standing]) -> None:
        again = {tried for tried, _ in self.tries} & {run.address for run in ready}
        overrides = [o for o in self.overrides if not (again and o.startswith("resume="))]
        names = submit(self.hypothesis, ready, overrides, self.code, self.at_once or len(ready))
        for run, name in zip(ready, names, strict=True):
            self.running.append(Job(run.config, name, standing.folder(run.config) / "log.txt", time.monotonic()))
        self.status.line(f"  submitted: {names[0]}" + (f" to {names[-1]}" if len(names) > 1 else ""))

    def training(self) -> list[Any]:
        return [job for job in self.running if job.entry.state == RUNNING]

    def look(self) -> None:
        for job in [job for job in self.running if record.path(job.config).exists()]:
            self.running.remove(job)
            self.over(job)
        if time.monotonic() - self.asked < LOOK:
            return
        self.asked = time.monotonic()
        try:
            found = queue(job.name for job in self.running)
        except UserError as error:
            if not self.silent:
                self.status.line(f"  {error}: asked again until it answers")
            self.silent = True
            return
        self.silent = False
        for job in list(self.running):
            self.moved(job, found.get(job.name, Entry("")))

    def moved(self, job: Job, entry: Entry) -> None:
        """Take in what Slurm says of a job."""
        before, job.entry = job.entry, entry
        if entry.live:
            job.misses = 0
            if entry.state == RUNNING and before.state != RUNNING:
                job.started = time.monotonic()
            if entry.state == PENDING and before.state not in (PENDING, ""):
                self.status.line(f"  {record.address(job.config)}: back in the queue ({entry.reason})")
            return
        job.misses += 1
        if job.result.exists() or job.misses > 1:  # a shared folder may be late
            self.running.remove(job)
            self.over(job)

    def over(self, job: Job) -> None:
        """Say how a job has ended, and submit again what may be."""
        address, results = record.address(job.config), Path(job.config["paths"]["results"])
        if record.path(job.config).exists():
            found = record.read(record.path(job.config))
            if record.stale(found) or found["identity"] != self.expected[address]:
                self.by_another(job.config)
                return
            self.times.setdefault(standing.cell(job.config), []).append(found["seconds"])
            self.done(job.config, f"{found['seconds']:.0f} s, job {job.name}")
            return
        kind, how = outcome(job)
        limit, log = 0, job.output if how else job.log
        if kind and not how:  # the job itself has tried what may be
            ends = attempts.ends(results, address)
            by_signal = kind in ("killed", "crash", "hang") and ends
            how = ends[-1][0] if by_signal else failures.describe(1, "\n".join(failures.tail(log, 60)))
        elif not kind:
            state = job.entry.state or accounted(job.name)
            kind, log = {"OUT_OF_MEMORY": "memory"}.get(state, "killed"), job.output
            how = f"Slurm says {state}" if state else "Slurm has forgotten its job"
            limit = 0 if state.startswith("CANCELLED") else failures.RETRIES[kind]
        with contextlib.suppress(OSError):
            attempts.note_end(results, address, how, kind)
        self.failed_once(job.config, kind, f"{how}, job {job.name}", log, limit)

    def interrupt(self) -> None:
        if self.running:
            arrays = dict.fromkeys(job.name.split("_")[0] for job in self.running)
            print(
                f"{len(self.running)} jobs are left in Slurm's queue, and go on: make status HYP={self.hypothesis.hypothesis} shows them, "
                f"scancel {' '.join(arrays)} ends them",
                file=sys.stderr,
            )

    def end(self) -> None:
        """Jobs do without the sweep."""


def outcome(job: Job) -> tuple[str, str]:
    """The class of the failure of a run as its job says it, and in words what the job itself has raised, if it did; empty where it
    came to no end."""
    import pickle

    with contextlib.suppress(OSError, EOFError, pickle.UnpicklingError):
        how, value = pickle.loads(job.result.read_bytes())
        return (
            (value.get(record.address(job.config), ""), "")
            if how == "success"
            else ("code", failures.describe(1, value))
        )
    return "", ""
