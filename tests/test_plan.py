"""What a sweep would do and cost, and where its runs stand: said before, while and after."""

import dataclasses
import json
import os
import subprocess
import sys
import time

import pytest
import torch

from hypotheses import attempts, checkpoint, claims, data, experiment, plan, record, selection, standing, status, sweep
from hypotheses.config import ROOT, compose
from hypotheses.errors import UserError
from hypotheses.progress import Enough, Progress
from hypotheses.run import device_name

ARMS = ["mambaout_atto", "mambaout_atto_ssm", "mambaout_atto_identity"]
pytestmark = pytest.mark.xdist_group("plan")  # one set of data for all of them


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The demo's data, drawn once for all tests."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def asked(hypothesis, paths, digits):
    """Of classification alone, without the positive control, for which the fixture below has runs in every state."""
    alone = dataclasses.replace(hypothesis, positive_control=None)
    return selection.Selection(
        alone, "demo", 5, ARMS, ["imagenet"], 2, None, [*paths[1:], f"paths.data={digits}", "hardware=cpu"]
    )


@pytest.fixture
def states(asked, make_records, tmp_path):
    """A run in each state, by name: seeds of the first arm, and one of the second."""
    made = make_records({ARMS[0]: [90.0] * 5})
    configs = {(c["backbone"]["name"], c["seed"]): c for c in asked.configs()}
    packages = {"torch": record.metadata.version("torch")}

    def recorded(seed: int, **provenance: object) -> None:
        config = configs[ARMS[0], seed]
        fingerprint = data.prepare(config).fingerprint
        one = made[ARMS[0], seed]
        one["identity"], one["data_fingerprint"] = record.identity(config, fingerprint), fingerprint
        one["seconds"] = 60.0 + 60 * seed
        one["provenance"] |= {"code": record.code_fingerprint(), "packages": packages, "peak_memory_bytes": 7 * 2**20}
        one["provenance"] |= {"device": device_name(config), "threads": 1}
        one["provenance"] |= provenance
        record.write(record.path(config), one)

    recorded(0)
    recorded(1, code="other", commit="abcdef123456", dirty=True)
    recorded(2)
    stored = record.read(record.path(configs[ARMS[0], 2]))
    stored["config"]["recipe"]["epochs"] = 7
    stored["identity"] = "other"
    record.write(record.path(configs[ARMS[0], 2]), stored)
    results = tmp_path / "results"
    with pytest.raises(FloatingPointError), attempts.noted(results, record.address(configs[ARMS[0], 3])):
        raise FloatingPointError("the loss is nan at step 9")
    log = standing.folder(configs[ARMS[0], 3]) / "log.txt"
    log.parent.mkdir(parents=True)
    log.write_text("bar 1\rbar 2\nerror: training diverged: the loss is nan at step 9\n")
    killed = configs[ARMS[0], 4]
    attempts.add(attempts.path(results, record.address(killed)), begun=attempts.now())
    made_by = {"code": record.code_fingerprint(), "packages": packages}
    identity = record.identity(killed, data.prepare(killed).fingerprint)
    checkpoint.Checkpoints(standing.folder(killed), identity, made_by, 0.0).write(93, b"x")
    (standing.folder(killed) / "heartbeat.json").write_text(
        json.dumps({"step": 120, "steps": 465, "seconds_left": 30.0})
    )
    with claims.held(standing.folder(configs[ARMS[1], 0])):
        beat = {"step": 46, "steps": 465, "seconds": 5.0, "seconds_left": 45.0, "shown": {"loss": "0.3"}}
        (standing.folder(configs[ARMS[1], 0]) / "heartbeat.json").write_text(json.dumps(beat))
        (standing.folder(configs[ARMS[1], 0]) / "metrics.jsonl").write_text(
            '{"step": 40, "top1_percent": 33.3}\n{"step": 46, "train_loss": 1.0}\n'
        )
        yield configs


def test_a_plan_says_what_it_would_do_with_each_run_and_why(asked, states):
    found = plan.make(asked, measure=False)
    said = {
        run.address.removeprefix("demo/imagenet/mambaout_atto"): (plan.action(run, None), plan.why(run))
        for run in found.runs
    }
    assert said["/seed_0"] == ("reuse", "recorded by the code and software of now")
    assert said["/seed_1"] == ("ask", "recorded by other code (of commit abcdef123*): say STALE=reuse or STALE=rerun")
    action, why = said["/seed_2"]
    assert action == "mend" and "recipe.epochs: recorded 7, asked 5" in why
    assert said["/seed_3"] == ("run", "failed (nan): FloatingPointError: the loss is nan at step 9")
    assert said["/seed_4"] == ("resume", "ended without a word; checkpoint of step 93")
    assert said["_ssm/seed_0"][0] == "wait" and f"process {os.getpid()} on " in said["_ssm/seed_0"][1]
    assert said["_ssm/seed_1"] == ("run", "no record, never begun")
    stale = next(run for run in found.runs if run.state == "stale")
    assert plan.action(stale, "reuse") == "reuse" and plan.action(stale, "rerun") == "run"
    shown = plan.table(found)
    assert "15 runs: 1 reuse, " in shown and all(
        f" {part}" in shown for part in ("1 ask", "1 mend", "1 resume", "1 wait", "10 run")
    )
    text = json.loads(plan.as_json(found))
    assert {r["action"] for r in text["runs"]} == {"reuse", "ask", "mend", "run", "resume", "wait"}


def test_cost_comes_from_records_where_there_are_some(asked, states):
    found = {cell.arm: cell for cell in plan.make(asked, measure=False).cells}
    gated = found["mambaout_atto"]
    assert (
        gated.source == "mean of 2 records" and gated.minutes == 1.5
    )  # 60 and 120 seconds; another recipe does not count
    assert gated.memory_bytes == 7 * 2**20 and gated.runs == 2
    assert gated.left == pytest.approx(1 + (1 - 93 / 465))  # one from the beginning, one from its checkpoint
    assert gated.params == 107_978
    assert gated.disk_bytes == gated.params * (4 * 2 + 3 * 12)
    assert found["mambaout_atto_ssm"].minutes is None and found["mambaout_atto_ssm"].source == "not measured"


def test_a_budget_that_cannot_be_kept_stops_it(asked, states):
    whole = plan.make(asked, measure=False)
    assert whole.minutes is None
    with pytest.raises(UserError, match="BUDGET=5: how long imagenet mambaout_atto_ssm takes not measured"):
        plan.check_budget(whole, 5)
    part = plan.make(dataclasses.replace(asked, arms=ARMS[:1]), measure=False)
    assert part.minutes == pytest.approx(1.5)  # no less than the longest run, though two go side by side
    plan.check_budget(part, 1.6)
    with pytest.raises(UserError, match=r"BUDGET=1: the sweep would take about 2 minutes, 2 runs at a time: give more"):
        plan.check_budget(part, 1)


@pytest.mark.parametrize("budget", ["soon", "-3", "0", "nan", ""])
@pytest.mark.parametrize("target", ["plan", "sweep"])
def test_a_budget_that_is_none_is_refused_before_anything_is_measured(target, budget, one_line_error, paths):
    said = one_line_error(f"hypotheses.{target}", "1", f"--budget={budget}", *paths)
    assert f"BUDGET={budget}: give a number of minutes above 0" in said and "measuring" not in said


@pytest.mark.parametrize("task", ["imagenet", "coco", "ade20k"])
def test_a_measurement_is_of_the_real_run(task, paths):
    """Its steps and images, and the memory of the process."""
    found = plan.measure_here(compose([f"task={task}", "scale=demo", "hardware=cpu", "hardware.threads=1", *paths,
                                       *(["recipe.data.train_images=16", "recipe.data.val_images=8"] if task != "imagenet" else []),
                                       "recipe.batch_size=4", "tag=short"]))  # fmt: skip
    assert found["seconds"] > 0.1 and found["memory"] > 2**28
    assert "measured: " in found["source"] and "ms a step" in found["source"] and "ms an image" in found["source"]


def test_data_that_are_not_there_are_said_and_stop_no_plan(paths, command):
    # the third hypothesis: the others' positive control has data that are drawn, for minutes
    done = command("hypotheses.plan", "3", "--scale", "paper", "paths.imagenet=/nowhere", *paths)
    assert done.returncode == 0, done.stderr
    assert "cannot be measured: no images at /nowhere/train" in done.stdout and "cannot be said" in done.stdout


def test_a_status_says_where_each_run_stands(asked, states):
    rows = {
        r["run"].removeprefix("demo/imagenet/"): r
        for r in (status.row(asked, standing.of(config)) for config in asked.configs())
    }
    running = rows["mambaout_atto_ssm/seed_0"]
    assert running["state"] == "running" and running["percent"] == pytest.approx(100 * 46 / 465)
    assert (running["seconds_left"], running["metric"], running["value"]) == (45.0, "top1_percent", 33.3)
    assert running["silent_seconds"] < 60
    failed = rows["mambaout_atto/seed_3"]
    assert (failed["state"], failed["failure"]) == ("failed", "nan")
    assert failed["tail"] == ["bar 2", "error: training diverged: the loss is nan at step 9"]
    assert rows["mambaout_atto/seed_0"]["value"] == 90.0 and rows["mambaout_atto/seed_0"]["percent"] == 100
    assert rows["mambaout_atto/seed_1"]["state"] == "stale"
    assert rows["mambaout_atto/seed_4"]["state"] == "dead" and rows["mambaout_atto/seed_4"]["checkpoint"] == 93
    assert rows["mambaout_atto/seed_4"]["percent"] == pytest.approx(20)  # from there, though it had come further
    assert rows["mambaout_atto_identity/seed_0"]["state"] == "waiting"
    shown = status.table(asked, list(rows.values()))
    assert "15 runs: 1 recorded" in shown and "failed (nan)" in shown
    assert "| error: training diverged: the loss is nan at step 9" in shown
    assert "goes on from its checkpoint of step 93" in shown and "45 s" in shown


def test_a_slow_run_is_told_from_a_dead_one(asked, states):
    """By its heartbeat, and by whether its process lives."""
    slow = standing.folder(states[ARMS[1], 0])
    then = time.time() - 200
    os.utime(slow / "heartbeat.json", (then, then))
    rows = [status.row(asked, standing.of(config)) for config in asked.configs()]
    assert "no heartbeat for 3 min: slow, or hung" in status.table(asked, rows)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    number, said = claims.newest(slow)
    claims.claim_file(slow, number).write_text(json.dumps(said | {"pid": gone.pid, "born": "1"}))
    file = attempts.path(slow.parents[4] / "results", record.address(states[ARMS[1], 0]))
    attempts.add(file, begun=attempts.now())
    found = {r["run"]: r["state"] for r in (status.row(asked, standing.of(config)) for config in asked.configs())}
    assert found[record.address(states[ARMS[1], 0])] == "dead"


def test_a_measured_step_ends_when_a_gpu_has_done_it(tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(time.monotonic()))
    measured = Progress(tmp_path, "run", steps=3, only=2)
    measured.advance()
    with pytest.raises(Enough) as enough:
        measured.advance()
    assert len(waited) == 2
    assert all(done <= end for done, end in zip(waited, enough.value.ends, strict=True))


@pytest.mark.parametrize("ask", [plan.make, sweep.sweep])
def test_arms_that_differ_in_more_than_is_registered_are_said_before_anything_runs(ask, asked, tmp_path):
    strict = dataclasses.replace(
        asked, hypothesis=dataclasses.replace(asked.hypothesis, pair_may_differ=["backbone.name"])
    )
    with pytest.raises(
        UserError,
        match=r"mambaout_atto_ssm/seed_0 differs from \S+mambaout_atto/seed_0 in backbone\.mixer, ssm against conv: .*add backbone.mixer to",
    ):
        ask(strict)
    assert not list(tmp_path.glob("outputs/*"))


def test_the_commands(paths, tmp_path):
    def make(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["make", *words], cwd=ROOT, capture_output=True, text=True, timeout=300)

    done = make("--no-print-directory", "status", "HYP=2", f"ARGS={' '.join(paths)} --json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert len(rows) == 39 and {r["state"] for r in rows} == {"waiting"}
    assert not (tmp_path / "data").exists() and not (tmp_path / "results").exists()  # it makes nothing
    assert make("status").returncode == 2
    done = make("plan", "HYP=1", "TASK=cats")
    assert done.returncode == 2 and "TASK=cats: hypothesis 1 is about imagenet" in done.stderr
    done = make("sweep", "HYP=1", "STALE=maybe")
    assert done.returncode == 2 and "STALE=maybe: choose one of reuse, rerun" in done.stderr


def test_every_run_of_a_sweep_is_in_its_plan(hypothesis):
    wanted = experiment.wanted(hypothesis, "demo", 5, hypothesis.scales["demo"].registered(), ["imagenet"])
    assert len(wanted) == len(set(wanted)) == 24 and wanted[0][0] == "recall"
