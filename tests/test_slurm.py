"""Slurm: what is asked of it, and a real one of two nodes on this machine, which preempts, requeues, ends and loses jobs."""

import dataclasses
import getpass
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hypotheses import attempts, claims, experiment, record, slurm, standing, status, sweep
from hypotheses.config import ROOT, compose
from hypotheses.errors import UserError
from hypotheses.selection import Selection
from test_resume import left, same, went_on

pytestmark = pytest.mark.xdist_group("slurm")  # one cluster for all of them
DAEMONS = ("slurmctld", "slurmd", "munged", "sbatch")
ARM, OTHER = "mambaout_atto_identity", "mambaout_atto"

CONF = """
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool_%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd_%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobRequeue=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=30
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2
PartitionName=low Nodes=n1 Default=YES PriorityTier=1
PartitionName=high Nodes=n1 PriorityTier=10 PreemptMode=OFF
PartitionName=both Nodes=n1,n2 PriorityTier=1
"""


def wait_until(true: Callable[[], Any], seconds: float = 300.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, f"not so within {seconds:.0f} s"
        time.sleep(0.2)
    return found


def free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[None]:
    """A Slurm of two nodes, both on this machine; its commands find it by SLURM_CONF."""
    if missing := [name for name in DAEMONS if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")]:
        pytest.skip(f"no {missing[0]}: apt-get install slurmctld slurmd slurm-client munge")
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "state").mkdir()
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(folder=folder, user=getpass.getuser(), ports=free_ports(3)))
    munge = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    commands = [
        ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *munge],
        ["slurmctld", "-D", "-f", str(conf)],
        *(["slurmd", "-D", "-N", name, "-f", str(conf)] for name in ("n1", "n2")),
    ]
    daemons = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("SLURM_CONF", str(conf))
        patched.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin")
        patched.setenv("PYTHONPATH", f"{ROOT / 'tests' / 'faults'}:{os.environ.get('PYTHONPATH', '')}")
        for name in [name for name in os.environ if name.startswith("SLURM_") and name != "SLURM_CONF"]:
            patched.delenv(name)
        for number, words in enumerate(commands):
            with open(folder / f"daemon_{number}.log", "wb") as log:
                daemons.append(subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True))
            wait_until(lambda: Path(f"{folder}/munge.socket").exists())
        try:
            wait_until(
                lambda: slurm_says("sinfo", "--noheader", "--Node", "--format=%T").split().count("idle") == 4, 60
            )
            yield
            slurm_says("scancel", f"--user={getpass.getuser()}")
            wait_until(lambda: not slurm_says("squeue", "--noheader"))
        finally:
            for daemon in reversed(daemons):
                daemon.terminate()
            for daemon in daemons:
                daemon.wait(30)


def slurm_says(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout


def jobs(form: str = "%i %T") -> list[list[str]]:
    """What squeue says of the jobs that wait or run, by its own format."""
    said = slurm_says("squeue", "--noheader", "--array", "--sort=i", f"--format={form}")
    return [line.split() for line in said.splitlines()]


def until_held(process: Any, folder: Path) -> None:
    """Wait until the run of `start` has begun in its job."""

    def held() -> Any:
        assert process.poll() is None, printed(folder)
        return claims.holder(standing.folder(config_of(folder)))

    try:
        wait_until(held)
    except AssertionError as error:
        what = slurm_says("squeue", "--states=all"), slurm_says("sinfo", "--Node", "--long"), logs(folder)
        raise AssertionError("\n".join([str(error), *what])) from error


def job_of(folder: Path) -> str:
    """The job of the run of `start`; the queue may still have one of an earlier test, which is about to end."""
    return slurm.note(config_of(folder))["job"]


def start(
    folder: Path, *more: str, scale: str = "smoke", seeds: int = 1, arms: Any = (ARM,), at_once: Any = None
) -> Any:
    """A sweep by Slurm in a process of its own, without the positive control."""
    overrides = [
        f"paths.data={folder / 'data'}", f"paths.outputs={folder / 'outputs'}", f"paths.results={folder / 'results'}",
        "hardware=cpu", "cluster.cpus_per_task=1", "hardware.checkpoint_seconds=1000", *more,
    ]  # fmt: skip
    code = (
        "import dataclasses, sys; from hypotheses import errors, experiment, slurm, sweep;"
        "from hypotheses.selection import Selection; slurm.LOOK = 1.0;"
        "asked = dataclasses.replace(experiment.load('1'), positive_control=None);"
        f"asked = Selection(asked, {scale!r}, {seeds}, {list(arms)!r}, ['imagenet'], {at_once}, None, {overrides!r}, 'slurm');"
        "errors.command(lambda: sweep.sweep(asked))"
    )
    with open(folder / "sweep.txt", "w") as shown:
        words = [sys.executable, "-u", "-c", code]
        return subprocess.Popen(words, cwd=ROOT, stdout=shown, stderr=shown, start_new_session=True)


def printed(folder: Path) -> str:
    """What the sweep of `start` has printed so far."""
    return (folder / "sweep.txt").read_text()


def until_back(folder: Path, scale: str) -> None:
    """Wait until the sweep has seen that its job is back in the queue, where Slurm lets it wait for two minutes."""
    wait_until(lambda: f"{record.address(config_of(folder, scale))}: back in the queue" in printed(folder), 100)


def end(process: Any, folder: Path, seconds: float = 400.0) -> str:
    """Wait for the end of a sweep; what it has printed. A job that waits since it came back into the queue is hurried."""
    try:
        stop = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < stop:
            for job, state in jobs():
                if state == "PENDING":
                    slurm_says("scontrol", "update", f"JobId={job}", "StartTime=now")
            time.sleep(0.5)
        process.wait(1)
        return printed(folder)
    finally:
        process.kill()


def config_of(folder: Path, scale: str = "smoke", arm: str = ARM, seed: int = 0) -> Any:
    paths = [f"paths.{name}={folder / name}" for name in ("data", "outputs", "results")]
    return experiment.config_of(scale, "imagenet", arm, seed, [*paths, "hardware=cpu", "hardware.threads=1"])


def logs(folder: Path) -> str:
    return "\n".join(file.read_text() for file in sorted((folder / "outputs").rglob("*log*")) if file.is_file())


def training(folder: Path, scale: str = "smoke", arm: str = ARM) -> Callable[[], Any]:
    """Whether a run is past its first steps."""
    return lambda: standing.heartbeat(standing.folder(config_of(folder, scale, arm))).get("step", 0) > 1


# ---- what is asked of Slurm ------------------------------------------------------------------------------------------


def test_the_script_has_what_the_keys_say_by_slurm_s_names(tmp_path, monkeypatch):
    from submitit.slurm.slurm import _make_sbatch_string

    def script(*overrides: str) -> set[str]:
        asked = slurm.parameters(compose(list(overrides)), 3)
        text = _make_sbatch_string("COMMAND", tmp_path, map_count=9, **asked)
        assert text.count("\nsrun ") == 1 and "--nodes=1 --ntasks=1 COMMAND" in text
        return set(re.findall(r"^#SBATCH --(\S+)$", text, re.M))

    plain = script()
    assert {"array=0-8%3", "requeue", "signal=USR1@90", "time=1440", "nodes=1", "ntasks-per-node=1"} <= plain
    assert not [line for line in plain if re.match("partition|account|qos|constraint|mem|cpus|gpus", line)]
    keys = {
        "partition": "p",
        "account": "a",
        "qos": "q",
        "constraint": "c",
        "time": 5,
        "gpus-per-node": 2,
        "cpus-per-task": 4,
        "mem": "8G",
    }
    asked = [f"cluster.{key.replace('-', '_')}={value}" for key, value in keys.items()]
    assert {f"{key}={value}" for key, value in keys.items()} <= script(*asked)
    assert {"exclude=n7", "signal=USR1@30"} <= script("cluster.parameters={exclude: n7}", "cluster.signal=30")
    assert "gpus-per-node=1" in script("hardware=gpu")
    assert {"gpus-per-node=8", "nodes=2"} <= script("hardware=ddp_nodes", "cluster.gpus_per_node=8")


def test_they_change_no_run(tmp_path):
    plain = compose(["cluster.partition=null"])
    other = compose(["cluster.partition=p", "cluster.time=5", "cluster.mem=8G"])
    assert plain["cluster"] != other["cluster"]
    assert record.identity(plain, "data") == record.identity(other, "data") and record.address(plain) == record.address(
        other
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cluster.mem=much", "cluster.mem=much: give a number of megabytes, or one with K, M, G or T"),
        ("cluster.time=0", "cluster.time=0: give a number from 1"),
        ("cluster.time=long", "cluster.time: Value 'long'"),
        (
            "cluster.signal=120 cluster.time=2",
            "cluster.signal=120: give fewer seconds than cluster.time=2 minutes have",
        ),
        ("cluster.max_requeues=-1", "cluster.max_requeues=-1: give a number from 0"),
        ("cluster.partitoin=p", "no key 'cluster.partitoin'; did you mean cluster.partition?"),
        ("cluster=none", "no cluster 'none'. Choose from: slurm"),
    ],
)
def test_a_bad_value_is_named(override, message):
    with pytest.raises(UserError, match=re.escape(message)):
        compose(override.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--launcher", "slurm"], "LAUNCHER=slurm: no sbatch on this machine"),
        (["--launcher", "pbs"], "LAUNCHER=pbs: choose one of local, slurm"),
        (["--launcher", "slurm", "--budget", "5"], "BUDGET=5: minutes are known of this machine alone"),
        (["cluster.time=5"], "cluster.time=5: it is about jobs of a cluster: add LAUNCHER=slurm"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_fix(arguments, message, one_line_error, paths, tmp_path):
    assert message in one_line_error("hypotheses.sweep", "1", *arguments, *paths, PATH=str(tmp_path))
    assert not list((tmp_path / "outputs").rglob("*.sh"))


def test_all_gpus_of_a_node_have_a_number(paths):
    with pytest.raises(
        UserError, match=r"hardware=ddp takes all GPUs of a node: say how many, cluster.gpus_per_node=8"
    ):
        slurm.parameters(compose([*paths, "hardware=ddp"]), 1)


def test_several_nodes_meet_at_the_first_one(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "71234")
    words = slurm.slot(compose(["hardware=ddp_nodes", "hardware.nodes=3"])).python
    assert words[0] == "srun" and {"--nodes=3", "--ntasks=3", "--ntasks-per-node=1"} <= set(words)
    after = dict(itertools.pairwise(words))
    assert after["--nnodes"] == "3" and after["--nproc-per-node"] == "gpu" and after["--rdzv-id"] == "71234"
    assert after["--rdzv-endpoint"] == f"{socket.gethostname()}:21234"


@pytest.fixture
def waiting(paths, tmp_path, hypothesis):
    """A run that slurm.json says was submitted as job 7_0, and the status of it as a table."""
    config = config_of(tmp_path)
    said = {"job": "7_0", "identity": "i", "code": "c"}
    record.write_aside(standing.folder(config) / "slurm.json", json.dumps(said))
    asked = Selection(hypothesis, "smoke", 1, [ARM], ["imagenet"], None, None, paths)

    def table() -> str:
        found = slurm.entries([config]).get(record.address(config))
        return status.table(asked, [status.row(asked, standing.of(config), found)])

    return table


def test_the_status_does_without_squeue(waiting, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "1 waiting" in waiting() and "job 7_0: not known (no squeue on this machine)" in waiting()


# ---- Slurm itself ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What a run of the demo leaves that a sweep on this machine makes, uninterrupted; and its data."""
    folder = tmp_path_factory.mktemp("whole")
    hypothesis = dataclasses.replace(experiment.load("1"), positive_control=None)
    paths = [f"paths.{name}={folder / name}" for name in ("data", "outputs", "results")]
    more = [*paths, "hardware=cpu", "hardware.threads=1"]
    assert sweep.sweep(Selection(hypothesis, "demo", 1, [ARM], ["imagenet"], 1, None, more)) == 0
    return left(config_of(folder, "demo"))


@pytest.mark.slow
def test_a_run_that_is_preempted_goes_on_with_the_same_bits(cluster, whole, tmp_path):
    """By a job of a partition that goes before; nothing but Slurm itself brings the run back."""
    process = start(tmp_path, scale="demo")
    wait_until(training(tmp_path, "demo"))
    (before,) = jobs()
    slurm_says("sbatch", "--partition=high", "--exclusive", "--output=/dev/null", "--wrap=sleep 5")
    wait_until(lambda: [before[0], "PENDING"] in jobs())
    (found,) = slurm.entries([config_of(tmp_path, "demo")]).values()
    assert found[0] == before[0] and str(found[1]).startswith("PENDING (")
    until_back(tmp_path, "demo")
    shown = end(process, tmp_path)
    assert process.returncode == 0, shown + logs(tmp_path)
    made = record.read(record.path(config_of(tmp_path, "demo")))
    (step,) = went_on(made)
    assert step > 1  # from the checkpoint that was asked for: by the clock none is written for a quarter of an hour
    same(left(config_of(tmp_path, "demo")), whole)
    ends = attempts.read(tmp_path / "results", made["address"])
    assert ends == [attempts.INTERRUPTED, attempts.RECORDED]


@pytest.mark.slow
def test_a_run_that_takes_longer_than_its_job_goes_on_in_the_next(cluster, whole, tmp_path, monkeypatch):
    """In its third step, which takes longer than Slurm needs to see that little time is left. The job brings itself back."""
    monkeypatch.setenv("FAULT", f"pause40,3,{ARM},{tmp_path / 'flag'}")
    process = start(tmp_path, "cluster.time=60", "cluster.signal=110", scale="demo")
    wait_until((tmp_path / "flag").exists)
    ((job, elapsed),) = jobs("%i %M")
    slurm_says("scontrol", "update", f"JobId={job}", f"TimeLimit={int(elapsed.split(':')[-2]) + 2}")
    wait_until(lambda: [job, "PENDING"] in jobs())
    until_back(tmp_path, "demo")
    slurm_says("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    shown = end(process, tmp_path)
    assert process.returncode == 0, shown + logs(tmp_path)
    made = record.read(record.path(config_of(tmp_path, "demo")))
    assert went_on(made) == [3]
    assert f"{made['address']}: back into the queue" in logs(tmp_path)
    same(left(config_of(tmp_path, "demo")), whole)


@pytest.mark.slow
def test_a_run_whose_node_is_lost_goes_on_elsewhere_with_the_same_bits(cluster, whole, tmp_path):
    process = start(tmp_path, "cluster.partition=both", "hardware.checkpoint_seconds=1", scale="demo")
    wait_until(training(tmp_path, "demo"))
    wait_until(lambda: list(tmp_path.rglob("index.json")))
    ((node,),) = jobs("%N")
    slurm_says("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    shown = end(process, tmp_path)
    slurm_says("scontrol", "update", f"NodeName={node}", "State=RESUME")
    assert process.returncode == 0, shown + logs(tmp_path)
    made = record.read(record.path(config_of(tmp_path, "demo")))
    assert went_on(made)
    same(left(config_of(tmp_path, "demo")), whole)


@pytest.mark.slow
def test_ctrl_c_leaves_the_jobs_and_the_same_command_watches_them_again(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("FAULT", f"pause20,1,{OTHER},{tmp_path / 'flag'}")
    asked = {"seeds": 2, "arms": (OTHER, ARM), "at_once": 1}
    first = start(tmp_path, **asked)
    (job, *rest) = wait_until(lambda: len(found := jobs()) == 4 and ["RUNNING"] in [j[1:] for j in found] and found)
    assert sorted(state for _, state in (job, *rest)) == ["PENDING"] * 3 + ["RUNNING"]
    wait_until((tmp_path / "flag").exists)
    os.killpg(first.pid, signal.SIGINT)
    first.wait(30)
    shown = printed(tmp_path)
    number = job[0].split("_")[0]
    assert first.returncode == 130 and "Traceback" not in shown
    assert (
        f"4 jobs are left in Slurm's queue, and go on: make status HYP=1 shows them, scancel {number} ends them"
        in shown
    )
    assert len(jobs()) == 4
    found = slurm.entries([config_of(tmp_path, "smoke", arm, seed) for seed in (0, 1) for arm in (OTHER, ARM)])
    shown = [f"{job} {entry}" for job, entry in found.values()]
    assert shown == [f"{number}_0 RUNNING on n1", *(f"{number}_{i} PENDING (JobArrayTaskLimit)" for i in (1, 2, 3))]
    second = start(tmp_path, **asked)
    most, names = 0, set()
    while second.poll() is None:
        now = jobs()
        most, names = max(most, sum(state == "RUNNING" for _, state in now)), names | {name for name, _ in now}
        time.sleep(0.2)
    shown = end(second, tmp_path)
    assert second.returncode == 0, shown + logs(tmp_path)
    assert "4 to run, 4 of them submitted before, 1 at a time" in shown and "submitted:" not in shown
    assert most == 1 and names == {f"{number}_{i}" for i in range(4)}
    made = [record.path(config_of(tmp_path, "smoke", arm, seed)) for seed in (0, 1) for arm in (OTHER, ARM)]
    assert sorted(made, key=lambda file: file.stat().st_mtime) == made  # in the order of the sweep
    assert all(len(attempts.read(tmp_path / "results", record.read(file)["address"])) == 1 for file in made)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("code", r"FAILED \(code\), .*ZeroDivisionError: a mistake, job \S+; its log: .*log\.txt"),
        ("nan", r"FAILED \(nan\), training diverged: the loss is nan.*, job \S+; its log: .*log\.txt"),
    ],
)
def test_a_run_that_fails_is_classed_and_the_others_go_on(fault, said, cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("FAULT", f"{fault},2,{ARM},{tmp_path / 'flag'}")
    process = start(tmp_path, arms=(ARM, OTHER))
    shown = end(process, tmp_path)
    assert process.returncode == 1, shown
    assert re.search(f"{ARM}/seed_0: {said}", shown), shown
    assert f"smoke/imagenet/{OTHER}/seed_0: top1_percent" in shown
    assert standing.of(config_of(tmp_path)).failure == fault


@pytest.mark.slow
def test_what_may_have_been_chance_is_tried_again_in_its_job(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("FAULT", f"SIGKILL,2,{ARM},{tmp_path / 'flag'}")
    process = start(tmp_path, "hardware.checkpoint_seconds=0")
    shown = end(process, tmp_path)
    assert process.returncode == 0, shown + logs(tmp_path)
    made = record.read(record.path(config_of(tmp_path)))
    assert went_on(made) == [1] and "KILLED, killed by SIGKILL; goes on, try 1 of 2" in logs(tmp_path)
    assert attempts.ends(tmp_path / "results", made["address"])[0] == ("killed by SIGKILL", "killed")


@pytest.mark.slow
def test_a_job_that_is_cancelled_leaves_a_checkpoint_and_the_same_command_goes_on(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("FAULT", f"pause20,1,{ARM},{tmp_path / 'flag'}")
    process = start(tmp_path)
    wait_until((tmp_path / "flag").exists)
    slurm_says("scancel", job_of(tmp_path))
    shown = end(process, tmp_path)
    assert process.returncode == 1, shown
    assert re.search(rf"{ARM}/seed_0: FAILED \(killed\), Slurm says CANCELLED, job \d+; its log: .*_0_log\.out", shown)
    assert not jobs()
    process = start(tmp_path)
    shown = end(process, tmp_path)
    assert process.returncode == 0, shown + logs(tmp_path)
    assert "1 to run, 1 of them from a checkpoint, as many at a time as the cluster takes" in shown
    assert went_on(record.read(record.path(config_of(tmp_path)))) == [1]


@pytest.mark.slow
def test_a_job_that_comes_back_again_and_again_is_given_up(cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("FAULT", f"pause20,1,{ARM},-")
    process = start(tmp_path, "cluster.max_requeues=0")
    until_held(process, tmp_path)
    wait_until(lambda: not subprocess.run(["scontrol", "requeue", job_of(tmp_path)]).returncode, 10)
    shown = end(process, tmp_path)
    assert process.returncode == 1, shown
    assert "FAILED (killed), went back into the queue 1 times, more than cluster.max_requeues allows, job " in shown


@pytest.mark.slow
def test_what_slurm_refuses_is_one_line(cluster, tmp_path):
    process = start(tmp_path, "cluster.partition=none")
    shown = end(process, tmp_path, 60)
    assert process.returncode == 2
    assert shown.splitlines()[-1].startswith("error: sbatch refuses: ") and "invalid partition" in shown.lower()


@pytest.mark.slow
def test_a_run_of_several_processes_in_a_job(cluster, tmp_path):
    process = start(
        tmp_path, "hardware=ddp", "hardware.accelerator=cpu", "hardware.devices=2", "cluster.cpus_per_task=2"
    )
    shown = end(process, tmp_path)
    assert process.returncode == 0, shown + logs(tmp_path)
    (made,) = [record.read(file) for file in (tmp_path / "results/records").rglob("*.json")]
    assert made["provenance"]["attempts"][0]["processes"] == 2


@pytest.mark.slow
def test_a_run_on_two_nodes(cluster, tmp_path):
    """torchrun on each, started by srun; they find each other."""
    more = ["hardware=ddp_nodes", "hardware.accelerator=cpu", "hardware.devices=1", "cluster.partition=both"]
    process = start(tmp_path, *more)
    shown = end(process, tmp_path)
    assert process.returncode == 0, shown + logs(tmp_path)
    (made,) = [record.read(file) for file in (tmp_path / "results/records").rglob("*.json")]
    assert made["provenance"]["attempts"][0]["processes"] == 2 and made["provenance"]["hardware"]["nodes"] == 2


@pytest.mark.slow
def test_a_grid_of_ad_hoc_runs_as_jobs(cluster, command, tmp_path):
    """By Hydra's own launcher: the records of single runs."""
    inside = [f"paths.{name}={tmp_path / name}" for name in ("data", "outputs", "results")]
    plain = [f"backbone={ARM}", "scale=smoke", "hardware=cpu", "hardware.threads=1", *inside]
    more = ["hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=5", "hydra.launcher.cpus_per_task=1"]
    done = command("hypotheses.run", "-m", *more, f"hydra.sweep.dir={tmp_path / 'multirun'}", *plain, "seed=0,1")
    assert done.returncode == 0, done.stderr
    made = [left(compose([*plain, f"seed={seed}"])) for seed in (0, 1)]
    for seed in (0, 1):
        alone = [*plain, f"seed={seed}", f"paths.outputs={tmp_path / 'alone'}", f"paths.results={tmp_path / 'alone'}"]
        assert command("hypotheses.run", *alone).returncode == 0
        same(left(compose(alone)), made[seed])
