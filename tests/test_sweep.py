"""The sweep: child processes, reuse, failures that stop nothing, Ctrl-C and going on."""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hypotheses import data, experiment, record, sweep
from hypotheses.config import ROOT
from hypotheses.selection import Selection


@pytest.fixture
def small(hypothesis, paths):
    """Sweep two arms at smoke scale in this process; returns the exit code."""

    def run(arms=("mambaout_atto", "mambaout_atto_identity"), seeds=1, more=()):
        overrides = [*paths, "hardware=cpu", *more]
        return sweep.sweep(Selection(hypothesis, "smoke", seeds, list(arms), ["imagenet"], 2, None, overrides))

    return run


def test_it_runs_what_is_missing_goes_on_after_a_failure_and_reuses(small, tmp_path, capsys):
    # a folder stands where a run wants to write its weights
    (tmp_path / "outputs/smoke/imagenet/mambaout_atto/seed_0/weights.pt/x").mkdir(parents=True)
    assert small() == 1
    shown = capsys.readouterr().out
    assert "2 runs, 0 recorded, 2 to run, 2 at a time" in shown
    assert re.search(r"mambaout_atto/seed_0: FAILED \(code\), .*weights\.pt.*its log: .*log\.txt", shown)
    assert len(list((tmp_path / "results").rglob("*.json"))) == 1
    times = {f: f.stat().st_mtime_ns for f in (tmp_path / "results").rglob("*.json")}
    shutil.rmtree(tmp_path / "outputs/smoke/imagenet/mambaout_atto/seed_0/weights.pt")
    assert small() == 0
    assert "1 recorded, 1 to run" in capsys.readouterr().out
    assert all(f.stat().st_mtime_ns == t for f, t in times.items())
    left = (
        tmp_path / "outputs/smoke/imagenet/mambaout_atto/seed_0/checkpoints"
    )  # by a kill between the record and the end
    left.mkdir()
    assert small() == 0
    assert "2 recorded, 0 to run" in capsys.readouterr().out and not left.exists()
    threads = {record.read(f)["provenance"]["threads"] for f in (tmp_path / "results").rglob("*.json")}
    assert threads == {1}


def test_ctrl_c_ends_the_children_and_the_same_command_goes_on(paths, tmp_path):
    code = (
        "from hypotheses import experiment, sweep; from hypotheses.selection import Selection; import sys;"
        "sys.exit(sweep.sweep(Selection(experiment.load('1'), 'smoke', 1, ['mambaout_atto', 'mambaout_atto_identity'],"
        f" ['imagenet'], 1, None, {[*paths, 'hardware=cpu']!r})))"
    )

    def start():
        return subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip

    first = start()
    deadline = time.monotonic() + 120
    while not list(tmp_path.rglob("seed_0.json")):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(1.0)  # into the second run
    os.killpg(first.pid, signal.SIGINT)
    out, said = first.communicate(timeout=60)
    assert first.returncode == 130 and re.search(r"interrupted: [12] of 2 runs done", said), said
    assert "Traceback" not in said
    ps = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert str(tmp_path) not in ps
    kept = len(list((tmp_path / "results").rglob("*.json")))
    assert f"interrupted: {kept} of 2 runs done" in said
    second = start()
    out, said = second.communicate(timeout=240)
    assert second.returncode == 0, said
    assert f"{kept} recorded, {2 - kept} to run" in out
    assert len(list((tmp_path / "results").rglob("*.json"))) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["9"], "HYP=9: no such hypothesis; registered in experiments/: 1, 2, 3, 4"),
        (["2", "--task", "imagenet"], "TASK=imagenet: hypothesis 2 is about coco, ade20k: choose one, or leave it out"),
        (["2", "--scale", "paper", "paths.coco=/nowhere"], "no /nowhere/train2017"),
        (["1", "--scale", "smoke"], "SCALE=smoke: hypothesis 1 is registered at demo, pilot, paper"),
        (["1", "--seeds", "7"], "SEEDS=7 is not a planned look; the registered ones are 5, 10, 20"),
        (["1", "--arms", "some"], "ARMS=some: say all"),
        (["1", "--jobs", "0"], "JOBS=0"),
        (["1", "--jobs", "two"], "JOBS=two: give a whole number"),
        (["1", "--budgte", "5"], "no option --budgte; did you mean --budget?"),
        (["1", "recipe.epochs=1"], "a sweep takes hardware, cluster, paths, resume and wandb only"),
        (["1", "--scale", "paper", "paths.imagenet=/nowhere"], "no images at /nowhere/train"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_a_mistake_is_one_line_that_names_the_fix(arguments, message, one_line_error, paths):
    assert message in one_line_error("hypotheses.sweep", *arguments, *paths)


def test_the_time_left_is_known_of_the_arms_that_were_seen(tmp_path):
    class Process:
        pid = 0

    def config(arm):
        return {"task": {"name": "coco"}, "backbone": {"name": arm}, "tag": None}

    child = sweep.Child(config("a"), Process(), tmp_path / "log.txt", sweep.Slot(0, {}, []), time.monotonic() - 10)  # type: ignore[arg-type]
    beat = {"step": 1, "steps": 2, "seconds_left": 30.0}
    assert sweep.time_left([child], [beat], [], {}) == (30, 0)
    assert sweep.time_left([child], [beat], [config("b")], {}) == (30, 1)
    assert sweep.time_left([child], [beat], [config("b")], {"coco b": [100.0]}) == (130, 0)
    assert sweep.time_left([child], [beat], [config("a")], {})[0] == pytest.approx(70, abs=1)
    assert sweep.time_left([child], [{}], [], {}) == (0, 1)


def test_slots_are_cores_or_the_gpus_that_are_visible(hypothesis, monkeypatch):
    def slots(jobs=None, *overrides):
        config = experiment.config_of("demo", "imagenet", "mambaout_atto", 0, list(overrides))
        return [(s.environment, s.overrides) for s in sweep.make_slots(config, jobs)]

    cores = len(os.sched_getaffinity(0))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    two = [({"CUDA_VISIBLE_DEVICES": g}, []) for g in ("2", "3")]
    assert slots() == two and slots(1) == two[:1] and slots(4) == two * 2
    one_thread = ({"OMP_NUM_THREADS": "1"}, ["hardware.threads=1"])
    assert slots(None, "hardware=cpu") == [one_thread] * cores
    assert slots(1, "hardware=cpu", "hardware.threads=3") == [({"OMP_NUM_THREADS": "3"}, ["hardware.threads=3"])]
    assert slots(None, "hardware=ddp") == [({}, [])]


@pytest.mark.slow
def test_a_terminal_sees_one_line_that_is_redrawn(paths, tmp_path):
    """In a pseudo-terminal: share, loss and accuracy of what is running."""
    code = (
        "from hypotheses import experiment, sweep; from hypotheses.selection import Selection;"
        f"sweep.sweep(Selection(experiment.load('1'), 'smoke', 1, ['mambaout_atto'], ['imagenet'], 1, None,"
        f" {[*paths, 'hardware=cpu']!r}))"
    )
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-c", code])
    shown = b""
    while True:
        try:
            chunk = os.read(terminal, 4096)
        except OSError:
            break
        if not chunk:
            break
        shown += chunk
    os.waitpid(pid, 0)
    assert b"\r\x1b[K  0 of 1 finished | imagenet mambaout_atto seed 0 starting" in shown
    assert b"smoke/imagenet/mambaout_atto/seed_0: top1_percent" in shown


def test_the_sham_is_run_if_and_only_if_a_larger_arm_wins(tmp_path, make_records, memory, monkeypatch, capsys):
    """All registered runs are recorded, and a sweep is only noted: of what, and in which order."""
    swept, gated = [], [90.0, 91.0, 89.0, 90.5, 90.2]
    monkeypatch.setattr(sweep, "sweep", lambda asked: swept.append((asked.arms, asked.tasks)) or 0)
    noise = (0.1, -0.2, 0.0, 0.2, -0.1)
    registered = ["mambaout_atto", "mambaout_atto_ssm", "mambaout_atto_identity"]
    for gain, shams in ((4.0, [(["mambaout_atto_sham"], ["imagenet"])]), (0.2, [])):
        ssm = [g + gain + n for g, n in zip(gated, noise, strict=True)]
        made = make_records(dict(zip(registered, (gated, ssm, [40.0] * 5), strict=True)))
        for r in (*made.values(), *memory["recall"].values()):
            record.write(tmp_path / "records" / f"{r['address']}.json", r)
        swept.clear()
        assert sweep.main(["1", f"paths.results={tmp_path}"]) == 0
        assert swept == [(registered, ["imagenet"]), *shams]
        assert ("must beat its sham" in capsys.readouterr().out) == bool(shams)


@pytest.mark.slow
def test_the_whole_command_ends_in_a_verdict(tmp_path, make_records, hypothesis):
    """`make sweep HYP=1` with all runs but one recorded, as by other code: that one is trained for real, then all are judged."""
    paths = [f"paths.{n}={tmp_path / n}" for n in ("data", "outputs", "results")]
    wanted = experiment.wanted(hypothesis, "demo", 5, hypothesis.scales["demo"].registered(), ["imagenet"])
    for task, arm, seed in wanted[:-1]:
        config = experiment.config_of("demo", task, arm, seed, paths)
        fingerprint = data.prepare(config).fingerprint
        made = make_records({arm: [10.0 if "identity" in arm else 85.0 + seed] * (seed + 1)}, task)[arm, seed]
        made["identity"], made["data_fingerprint"] = record.identity(config, fingerprint), fingerprint
        record.write(record.path(config), made)
    done = subprocess.run(
        ["make", "sweep", "HYP=1", "STALE=reuse", f"ARGS={' '.join(paths)}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    assert "23 recorded, 1 to run" in done.stdout
    assert "Hypothesis 1 at demo scale:" in done.stdout
    last = record.read(tmp_path / "results/records/demo/imagenet/mambaout_atto_identity/seed_4.json")
    assert last["seconds"] > 1 and json.dumps(last["curve"])
    assert Path(tmp_path, "results/report/index.html").exists()
