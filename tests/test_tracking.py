"""What W&B is told, read back by its own reader from what it keeps offline, and by a stand-in of its server."""

import argparse
import csv
import functools
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from wandb.util import get_core_path

from hypotheses import attempts, dashboard, experiment, publish, record, report, tracker, tracking
from hypotheses.config import ROOT, compose
from hypotheses.errors import UserError
from hypotheses.run import run
from stand_in import KEY, serving

REFERENCE = ROOT / "results" / "reference"
SMOKE = ["scale=smoke", "hardware=cpu", "hardware.threads=1"]
SHARED = {"trainer/global_step", "train/loss", "lr", "time/seconds"}
THEIRS = ("_runtime", "_step", "_timestamp", "_wandb")  # keys that wandb adds


def plain(item: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in item.items() if not key.startswith(THEIRS)}


def read(file: Path) -> dict[str, Any]:
    """A .wandb file as wandb's own reader prints it: how its run was opened, rows, summary, system metrics and exit code."""
    words = [get_core_path(), "leet", "inspect", "--no-observability", "--json", "--run-file", file, file.parents[1]]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = {"rows": [], "summary": {}, "stats": [], "exit": None}
    for line in map(json.loads, done.stdout.splitlines()):
        what = line.get(line["type"])
        if line["type"] == "run":
            found["run"] = what
        elif line["type"] == "history":
            found["rows"].append(plain(what["item"]))
        elif line["type"] == "summary":
            found["summary"] |= plain(what["update"])
        elif line["type"] == "stats":
            found["stats"].append(what["item"])
        elif line["type"] == "exit":
            found["exit"] = what.get("exit_code", 0)
    return found


def kept(results: Path) -> dict[str, dict[str, Any]]:
    """Every run that W&B keeps in a folder of results, by its id."""
    files = list((results / "wandb").glob("*run-*/run-*.wandb"))
    found = {file.stem.removeprefix("run-"): read(file) for file in files}
    assert len(found) == len(files), "an id that is there twice"
    return found


def from_reference(folder: Path, *addresses: str) -> list[tuple[record.Record, Path]]:
    """Copies of committed records, of which those of classification are given the rows that they were made before."""
    found = []
    for address in addresses:
        source, file = REFERENCE / "records" / f"{address}.json", folder / "records" / f"{address}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, file)
        one = record.read(file)
        rows = [{"step": 93 * i} | row | {"lr": 0.1, "seconds": 2.0 * i} for i, row in enumerate(one["curve"], 1)]
        file.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        found.append((one, file))
    return found


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


# ---- what is told ----------------------------------------------------------------------------------------------------


def test_an_id_is_of_what_a_run_is_and_fits():
    one = tracking.run_id("demo/imagenet/mambaout_atto/seed_0", "a")
    assert one == tracking.run_id("demo/imagenet/mambaout_atto/seed_0", "a")
    assert one.startswith("demo-imagenet-mambaout_atto-seed_0-")
    others = [
        tracking.run_id("demo/imagenet/mambaout_atto/seed_0", "b"),
        tracking.run_id("demo/imagenet/mambaout_atto+x/seed_0", "a"),
        *(
            tracking.run_id(f"paper/imagenet/mambaout_tiny_matched_params+{'long' * 20}/seed_{k}", "a")
            for k in range(2)
        ),
    ]
    assert len({one, *others}) == 5
    assert all(len(name) <= 64 and not set("/\\#?%:+") & set(name) for name in others)


@pytest.mark.parametrize(
    ("address", "group", "serves"),
    [
        ("demo/imagenet/mambaout_atto/seed_0", "hypothesis_1_demo", ["H1"]),
        ("demo/recall/mambaout_atto/seed_0", "hypothesis_1_demo", ["H1", "H2"]),
        ("demo/coco/mambaout_atto_ssm/seed_4", "hypothesis_2_demo", ["H2"]),
        ("demo/imagenet/vit_atto_causal/seed_0", "hypothesis_1_demo", ["H1", "H3"]),
        ("demo/imagenet/mambaout_atto+wide/seed_0", "demo_others", []),
        ("smoke/imagenet/mambaout_atto/seed_0", "smoke_others", []),
        ("demo/imagenet/mambaout_atto/seed_100", "demo_others", []),
    ],
)
def test_a_run_is_grouped_and_tagged_by_the_hypotheses_that_have_it(address, group, serves):
    scale, task, name, _ = address.split("/")
    one = record.read(REFERENCE / "records/demo/imagenet/mambaout_atto/seed_0.json") | {"address": address}
    about = tracking.opening(one)["open"]
    assert about["group"] == group and about["name"] == address and about["job_type"] == "train"
    assert about["tags"] == [*serves, task, name, scale, "1 x CPU (AMD EPYC)"]
    assert about["config"]["recipe"] == one["config"]["recipe"] and about["config"]["identity"] == one["identity"]
    assert about["config"]["provenance"]["commit"] == one["provenance"]["commit"]


def test_the_mode_is_that_of_the_command_else_of_the_environment_else_offline(monkeypatch, one_line_error):
    monkeypatch.setenv("WANDB_MODE", "online")
    assert compose([])["wandb"] == "online" and compose(["wandb=off"])["wandb"] == "off"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert compose([])["wandb"] == "off" and compose(["wandb=offline"])["wandb"] == "offline"
    monkeypatch.delenv("WANDB_MODE")
    assert compose([])["wandb"] == "offline"
    with pytest.raises(UserError, match=r"wandb=ofline .*choose one of offline, online, off"):
        compose(["wandb=ofline"])
    one, two = (record.identity(compose([f"wandb={mode}"]), "data") for mode in ("off", "online"))
    assert one == two


# ---- while it trains -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plainly(tmp_path_factory) -> Callable[[str], record.Record]:
    """The record of a smoke run of a task that W&B was told nothing of; made once."""

    @functools.cache
    def make(task: str) -> record.Record:
        folder = tmp_path_factory.mktemp(task)
        places = [f"paths.{name}={folder / name}" for name in ("data", "outputs", "results")]
        made = run(compose([*places, *SMOKE, f"task={task}", "wandb=off"]))
        assert made and not (folder / "results/wandb").exists()
        return made

    return make


@pytest.mark.parametrize("task", ["imagenet", pytest.param("ade20k", marks=pytest.mark.slow)])
def test_both_runners_tell_the_same_keys_on_the_same_axis_and_publish_tells_them_again(
    task, plainly, paths, tmp_path, monkeypatch
):
    """Each run once, under an id of its own; the whole configuration, pictures and system metrics; nothing outside of results/; and the
    same weights as without it."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    results = tmp_path / "results"
    made = [run(compose([*paths, *SMOKE, f"task={task}", "wandb=offline"]))]
    assert made[0]["provenance"]["artefacts"]["weights"] == plainly(task)["provenance"]["artefacts"]["weights"]
    found = kept(results)
    assert set(found) == {tracking.run_id(one["address"], one["identity"]) for one in made}
    for one in made:
        told, file = (
            found[tracking.run_id(one["address"], one["identity"])],
            results / "records" / f"{one['address']}.json",
        )
        *rows, pictures = told["rows"]
        assert len(rows) == len(one["curve"]) > 0 and told["exit"] == 0
        metrics = {f"val/{name}" for name in one["curve"][0] if "percent" in name or "val_loss" in name}
        metrics = {"val/loss" if name == "val/val_loss" else name for name in metrics}
        assert all(set(row) == SHARED | metrics for row in rows)
        assert [row["train/loss"] for row in rows] == [row["train_loss"] for row in one["curve"]]
        assert pictures["trainer/global_step"] == rows[-1]["trainer/global_step"] == 2
        image = next(
            (results / "wandb").glob(f"*-{one['address'].replace('/', '-')}-*/files/{pictures['val/pictures.path']}")
        )
        assert image.read_bytes() == file.with_suffix(".jpg").read_bytes()
        name, value = next((name, value) for name, value in one["metrics"].items() if name.endswith("percent"))
        assert told["summary"][f"final/{name}"] == value and told["summary"]["cost/params"] == one["cost"]["params"]
        config = told["run"]["config"]["update"]
        assert config["recipe"]["batch_size"] == one["config"]["recipe"]["batch_size"]
        assert any(item.get("proc.memory.rssMB", 0) > 100 for item in told["stats"])  # of the run, not of the tracker
        again = publish_offline(tmp_path / one["address"].split("/")[1], one, file)
        assert (again["rows"][:-1], again["summary"]) == (rows, told["summary"])
        assert plain(again["run"]["config"]["update"]) == plain(config)
    wandb_files = [f for f in (tmp_path / "home").rglob("*") if "wandb" in f.as_posix()]
    assert not wandb_files


def publish_offline(results: Path, one: record.Record, file: Path) -> dict[str, Any]:
    tracking.tell(lambda: tracking.story(one, file), "offline", results)
    (found,) = kept(results).values()
    return found


BROKEN = {  # what stands in front of wandb
    "no such package": "raise ImportError('not here')",
    "refuses to start": "def init(**_): raise RuntimeError('no start')\nclass Settings:\n    def __init__(self, **_): pass",
    "dies": "import os\nos._exit(3)",
    "hangs": "import time\ntime.sleep(600)",
}


def front(folder: Path, how: str) -> None:
    (folder / "front" / "wandb").mkdir(parents=True)
    (folder / "front" / "wandb" / "__init__.py").write_text(BROKEN[how])


@pytest.mark.parametrize("how", BROKEN)
def test_a_wandb_that_fails_neither_stops_nor_changes_a_run(how, plainly, paths, tmp_path, monkeypatch, capfd):
    weights = plainly("imagenet")["provenance"]["artefacts"]["weights"]
    monkeypatch.setitem(tracking.PATIENCE, "offline", 1.0)
    front(tmp_path, how)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'front'}:{os.environ.get('PYTHONPATH', '')}")
    made = run(compose([*paths, *SMOKE, "wandb=offline"]))
    assert made
    assert sha256(tmp_path / "outputs" / made["address"] / "weights.pt") == weights
    assert made["provenance"]["artefacts"]["weights"] == weights
    err = capfd.readouterr().err
    said = re.findall(r"note: W&B .*", err)  # which may stand behind a bar
    assert 1 <= len(said) <= 2 and "Traceback" not in err, err
    assert sum("make publish tells it all" in line for line in said) == 1


@pytest.mark.slow
def test_a_stop_while_w_and_b_is_slow_leaves_a_recorded_run_done(paths, tmp_path):
    """The run imports no wandb, even where timm would and where that would never end, and has its signals as they were."""
    code = (
        "import signal, sys\nfrom hypotheses import run\nrun.main()\nimport timm.utils\n"
        "print(sys.modules['wandb'], *(signal.getsignal(n) for n in (10, 15)))\n"
    )
    front(tmp_path, "hangs")
    given = os.environ | {"PYTHONPATH": f"{tmp_path / 'front'}:{os.environ.get('PYTHONPATH', '')}"}
    words = [sys.executable, "-c", code, *SMOKE, *paths, "wandb=offline"]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=given
    ) as process:
        assert process.stdout
        line = next(text for text in process.stdout if "seconds; " in text)  # it waits for W&B from now on
        assert "smoke/imagenet/mambaout_atto/seed_0: " in line
        time.sleep(0.5)
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert time.monotonic() - begun < tracking.PATIENCE["offline"] - 5
    assert "stopped, after it was recorded" in err and "nothing was recorded" not in err
    assert attempts.read(tmp_path / "results", "smoke/imagenet/mambaout_atto/seed_0") == [attempts.RECORDED]
    assert out.splitlines()[-1] == f"None {signal.SIG_DFL!s} {signal.SIG_DFL!s}"


class Slow:
    """In the place of a run of wandb: one whose end takes longer than anybody waits."""

    settings = argparse.Namespace(sync_dir="/")

    def finish(self, exit_code: int) -> None:
        threading.Event().wait()


def heard(*messages: dict[str, Any], results: Path) -> bytes:
    """What a tracker answers to the messages of a run."""
    mine, its = socket.socketpair()
    with mine:
        for message in ({"hello": {"mode": "offline", "results": str(results), "pid": None}}, *messages):
            mine.sendall(json.dumps(message).encode() + b"\n")
        tracker.listen(its)
        return mine.recv(1024)


@pytest.fixture
def fresh(monkeypatch):
    """A tracker that has not failed before."""
    monkeypatch.setattr(tracker, "prepare", lambda results: None)  # changes the environment
    monkeypatch.setattr(tracker, "SAID", set())
    monkeypatch.setattr(tracker, "DROPPED", [])
    monkeypatch.setattr(tracker.Writer, "refused", "")
    monkeypatch.setattr(tracker.Writer, "starting", threading.Lock())


ABOUT = {"id": "x", "name": "x", "group": "g", "job_type": "train", "tags": [], "config": {}}


def test_an_end_that_takes_too_long_drops_that_run_alone(fresh, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(tracker, "LAST", 0.2)

    def opened(self, about):
        self.run = Slow() if about["id"] == "x" else None

    monkeypatch.setattr(tracker.Writer, "on_open", opened)
    assert b"takes longer than 0.2 s to end a run" in heard({"open": ABOUT}, {"end": 0}, results=tmp_path)
    assert heard({"open": ABOUT | {"id": "y"}}, {"end": 0}, results=tmp_path) == tracking.DONE
    assert "takes longer than 0.2 s" in capfd.readouterr().err


def test_after_a_run_that_cannot_be_opened_no_other_is_tried(fresh, tmp_path, monkeypatch):
    tried = []

    def init(**about):
        tried.append(about["id"])
        raise RuntimeError("run x was previously created and deleted" if about["id"] == "gone" else "no server")

    monkeypatch.setattr("wandb.init", init)
    answers = [heard({"open": ABOUT | {"id": name}}, {"end": 0}, results=tmp_path) for name in ("gone", "x", "y")]
    assert tried == ["gone", "x"]  # of a deleted run no other one is the worse
    assert (
        b"no server" in answers[1] and b"no run is opened any more, since" in answers[2] and b"no server" in answers[2]
    )


def test_a_run_of_a_sweep_says_why_its_tracker_gave_it_up(tmp_path, capfd):
    told = tracking.Live("off", tmp_path)
    told.channel, its = socket.socketpair()
    with its:
        its.sendall(b"CommError: no server\n")
    told.row({"step": 1})
    told.row({"step": 2})
    told.close()
    said = "note: W&B is told no more of this run (CommError: no server); make publish tells it all\n"
    assert capfd.readouterr().err == said


def test_what_cannot_be_moved_aside_stays(tmp_path):
    old = tmp_path / "offline-run-20260101_000000-x"
    old.mkdir()
    (old / "run-x.wandb").write_text("system metrics")
    (tmp_path / "earlier").write_text("no folder")
    tracker.put_aside(tmp_path, "x", keep=True)
    assert (old / "run-x.wandb").read_text() == "system metrics"
    tracker.put_aside(tmp_path, "x", keep=False)
    assert not old.exists()


def test_a_run_that_is_kept_whole_is_left_as_it_is(sweep):
    one = record.read(sweep / "records/demo/imagenet/vit_atto/seed_0.json")
    story = tracking.story(one, sweep / "records/demo/imagenet/vit_atto/seed_0.json")
    assert not publish.there_already(story, sweep)
    tracking.tell(lambda: story, "offline", sweep)
    assert publish.there_already(story, sweep)
    one["metrics"]["top1_percent"] += 1  # run again: told anew
    assert not publish.there_already(tracking.story(one, publish.place(sweep, one)), sweep)
    (kept_one,) = (sweep / "wandb").glob("*run-*/" + tracker.WHOLE)
    kept_one.unlink()
    assert not publish.there_already(story, sweep)  # as of a run that was killed


def test_a_service_of_wandb_that_is_killed_is_said_in_a_line(tmp_path, capfd):
    ((one, file),) = from_reference(tmp_path, "demo/ade20k/mambaout_atto/seed_0")
    opening, *others = tracking.story(one, file)
    told = tracking.Live("offline", tmp_path)
    told.send(**opening)
    process, deadline = told.process, time.monotonic() + 60
    assert process
    while not list((tmp_path / "wandb").glob("*/*.wandb")):  # opened
        assert time.monotonic() < deadline
        time.sleep(0.05)
    services = [p for p in psutil.Process(process.pid).children(recursive=True) if p.name() == "wandb-core"]
    assert services
    for service in services:
        service.kill()
    for message in others:
        told.send(**message)
    told.close()
    process.wait(60)
    err = capfd.readouterr().err
    assert "note: W&B" in err and "Traceback" not in err, err


def test_a_run_that_goes_on_is_there_once_and_whole(tmp_path):
    """The rows of before are told again by the attempt that goes on, and what the killed one has left is put aside."""
    ((one, file),) = from_reference(tmp_path, "demo/ade20k/mambaout_atto/seed_0")
    opening, first, *others = tracking.story(one, file)
    killed = tracking.Live("offline", tmp_path)
    killed.send(**opening)
    killed.send(**first)
    assert killed.channel and killed.process
    killed.channel.close()  # as the system does at SIGKILL
    killed.process.wait(60)
    (before,) = kept(tmp_path).values()
    assert before["exit"] == tracker.KILLED and len(before["rows"]) == 1
    tracking.tell(lambda: [opening, first, *others], "offline", tmp_path)
    (after,) = kept(tmp_path).values()
    assert after["exit"] == 0 and [row["trainer/global_step"] for row in after["rows"][:8]] == [
        200 * i for i in range(1, 9)
    ]
    (aside,) = (tmp_path / "wandb" / "earlier").glob("*/*.wandb")
    assert read(aside)["rows"] == before["rows"]


def test_the_runs_of_a_sweep_share_a_tracker(tmp_path, monkeypatch):
    started = []
    spawn = tracking.spawn
    monkeypatch.setattr(tracking, "spawn", lambda *a, **k: started.append(spawn(*a, **k)) or started[-1])
    runs = from_reference(tmp_path, *(f"demo/ade20k/mambaout_atto/seed_{k}" for k in range(2)))
    with tracking.shared("offline"):
        both = [tracking.Live("offline", tmp_path) for _ in runs]
        for messages in zip(*(tracking.story(*one) for one in runs), strict=True):  # side by side
            for told, message in zip(both, messages, strict=True):
                told.send(**message)
        for told in both:
            told.close()
    assert len(started) == 1 and started[0].returncode == 0 and tracking.SHARED not in os.environ
    found = kept(tmp_path)
    for one, _ in runs:
        rows = found[tracking.run_id(one["address"], one["identity"])]["rows"]
        assert [row["val/miou_percent"] for row in rows if "val/miou_percent" in row] == [
            row["miou_percent"] for row in one["curve"]
        ]


@pytest.mark.slow
def test_a_sweep_without_a_server_tries_one_run_and_each_says_why(tmp_path, monkeypatch, capfd):
    runs = from_reference(tmp_path, *(f"demo/ade20k/mambaout_atto/seed_{k}" for k in range(2)))
    monkeypatch.setitem(tracking.PATIENCE, "online", 20.0)
    monkeypatch.setattr(tracking, "LEAVE", 30.0)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and nobody listens
        given = {"BASE_URL": f"http://127.0.0.1:{closed.getsockname()[1]}", "API_KEY": KEY, "INIT_TIMEOUT": "3"}
        for name, value in given.items():
            monkeypatch.setenv(f"WANDB_{name}", value)
        with tracking.shared("online"):
            for one in runs:
                tracking.tell(lambda one=one: tracking.story(*one), "online", tmp_path)
    said = [line for line in capfd.readouterr().err.splitlines() if "make publish tells it all" in line]
    assert len(said) == 2 and "no run is opened any more" not in said[0] and "no run is opened any more" in said[1]


@pytest.mark.slow
def test_of_two_processes_one_tells(paths, tmp_path, command):
    done = command("hypotheses.run", *SMOKE, "hardware.devices=2", *paths, WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    ((_, told),) = kept(tmp_path / "results").items()
    assert told["exit"] == 0 and told["rows"]


@pytest.mark.slow
def test_a_killed_run_is_whole_in_wandb_when_it_has_gone_on(paths, tmp_path):
    words = [*SMOKE, "recipe.epochs=40", "tag=long", "hardware.checkpoint_seconds=0", *paths, "wandb=offline"]
    start = [sys.executable, "-m", "hypotheses.run", *words]
    first = subprocess.Popen(start, cwd=ROOT, stderr=subprocess.DEVNULL)
    rows = tmp_path / "outputs/smoke/imagenet/mambaout_atto+long/seed_0/metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (rows.exists() and rows.read_text().count("\n") > 3):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert subprocess.run(start, cwd=ROOT, capture_output=True).returncode == 0
    ((_, told),) = kept(tmp_path / "results").items()
    values = [json.loads(line) for line in rows.read_text().splitlines()]
    assert len(values) == 40 and told["exit"] == 0
    assert [row["train/loss"] for row in told["rows"][:40]] == [row["train_loss"] for row in values]


# ---- publish ---------------------------------------------------------------------------------------------------------

ARMS = ("vit_atto", "vit_atto_causal")


@pytest.fixture
def sweep(tmp_path) -> Path:
    """The folder of results of a small part of a sweep, with a report."""
    folder = tmp_path / "results"
    from_reference(folder, *(f"demo/imagenet/{arm}/seed_0" for arm in ARMS))
    shutil.copytree(REFERENCE / "report" / "tables", folder / "report" / "tables")
    later = time.time() + 60
    (folder / "report" / "index.html").write_text("<p>the page</p>")
    os.utime(folder / "report" / "index.html", (later, later))
    return folder


def test_publish_sends_every_run_whole_and_again_the_same(sweep, tmp_path, command):
    """To the stand-in, which had a half of one run from elsewhere."""
    with serving() as server:
        given = {"WANDB_MODE": "online", "WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY, "HOME": str(tmp_path)}
        one = record.read(sweep / "records/demo/imagenet/vit_atto/seed_0.json")
        name = tracking.run_id(one["address"], one["identity"])
        half = {"files": {"wandb-history.jsonl": ['{"half": 1}'] * 99}, "opened": 0}
        server.runs[name] = half
        words = ("hypotheses.publish", "3", "--project", "P", f"paths.results={sweep}")

        def rows(run: str) -> list[dict[str, Any]]:
            return [plain(json.loads(line)) for line in server.runs[run]["files"]["wandb-history.jsonl"]]

        done = command(*words, **given)
        assert done.returncode == 0, done.stdout + done.stderr
        (other,) = server.runs.keys() - {name, "verdict-hypothesis_3_demo"}
        first = rows(other)
        sent = server.runs.pop(name)
        server.gone.add(name)  # somebody has deleted it there
        done = command(*words, **given, WANDB_INIT_TIMEOUT="3")
        assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stdout + done.stderr
        assert f"error: W&B does not take {one['address']}: deleted there" in done.stderr and "--project" in done.stderr
        assert "2 runs in us/P" in done.stdout and server.runs.keys() == {other, "verdict-hypothesis_3_demo"}
        assert rows(other) == first and server.runs[other]["opened"] == 2
        (summary,) = server.runs["verdict-hypothesis_3_demo"]["files"]["wandb-summary.json"]
        assert json.loads(summary)["verdict"] == "inconclusive" and "tables/gates" in summary
        told = [json.loads(line) for line in sent["files"]["wandb-history.jsonl"]]
        assert [row["trainer/global_step"] for row in told] == [93 * i for i in range(1, 6)]
        assert (sent["project"], sent["groupName"], sent["jobType"], sent["exitcode"]) == (
            "P",
            "hypothesis_1_demo",
            "train",
            0,
        )
        assert "RunResumeStatus" not in server.asked  # each time as a new one, over the old
        ((view, saved),) = server.views.items()  # saved twice, under one name
        assert saved["entityName"] == "us" and "vit_atto" not in view
    assert not list((sweep / "wandb").glob("*run-*")) and not list((sweep / "wandb").glob(".sending*"))


def test_a_run_is_told_live_to_a_server(paths, tmp_path, monkeypatch):
    with serving() as server:
        for name, value in (("WANDB_BASE_URL", server.url), ("WANDB_API_KEY", KEY), ("HOME", str(tmp_path))):
            monkeypatch.setenv(name, value)
        made = run(compose([*paths, *SMOKE, "wandb=online"]))
        assert made
        sent = server.runs[tracking.run_id(made["address"], made["identity"])]
    first, *_ = [json.loads(line) for line in sent["files"]["wandb-history.jsonl"]]
    assert first["train/loss"] == made["curve"][0]["train_loss"] and first["trainer/global_step"] == 2
    assert sent["exitcode"] == 0 and any(
        "system.proc.memory.rssMB" in line for line in sent["files"]["wandb-events.jsonl"]
    )


def test_without_account_publish_says_what_to_do(tmp_path, monkeypatch):
    nobody = {"WANDB_MODE": "online", "HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc"), "WANDB_API_KEY": ""}
    with monkeypatch.context() as here:
        for name, value in nobody.items():
            here.setenv(name, value)
        with pytest.raises(UserError, match=r"no account for W&B .*wandb login.*WANDB_API_KEY.*WANDB_BASE_URL"):
            publish.account()


@pytest.mark.slow
def test_without_network_publish_says_what_to_do(sweep, tmp_path, one_line_error):
    nobody = {"WANDB_MODE": "online", "HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")}
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and nobody listens
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        there = nobody | {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": address}
        said = one_line_error("hypotheses.publish", "3", f"paths.results={sweep}", **there)
    assert f"no W&B at {address}" in said and "check the network" in said


@pytest.mark.parametrize(
    ("words", "mode", "message"),
    [
        ([], "online", "say which hypothesis: make publish HYP=1"),
        (["1"], "online", "no records of hypothesis_1_pilot"),
        (["3"], "disabled", "WANDB_MODE=disabled: unset it to publish"),
    ],
)
def test_what_publish_cannot_do_is_said(words, mode, message, sweep, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", mode)
    scale = ["--scale", "pilot"] if words == ["1"] else []
    with pytest.raises(UserError, match=message):
        publish.main([*words, *scale, f"paths.results={sweep}"])


def test_the_verdict_is_a_run_with_its_tables_and_page(sweep):
    s = report.section(experiment.load("3"), sweep, "demo")
    tracking.tell(lambda: publish.verdict_story(s, sweep), "offline", sweep)
    tracking.tell(lambda: publish.verdict_story(s, sweep), "offline", sweep)
    ((name, told),) = kept(sweep).items()
    assert name == "verdict-hypothesis_3_demo" and told["summary"]["verdict"] == "inconclusive"
    (folder,) = (sweep / "wandb").glob("*verdict*")
    tables = {f.name.rsplit("_", 2)[0]: json.loads(f.read_text()) for f in folder.rglob("*.table.json")}
    gates = tables["gates"]
    assert gates["columns"] == ["task", "gate", "outcome", "detail"]
    assert [row[1:] for row in gates["data"]] == [
        [g.name, "passed" if g.passed else "failed", g.detail] for g in s.verdict.beds[0].gates
    ]
    with open(sweep / "report/tables/hypothesis_3_demo_imagenet_seeds.csv", newline="") as file:
        assert [tables["imagenet_seeds"]["columns"], *tables["imagenet_seeds"]["data"]] == list(csv.reader(file))
    (page,) = folder.rglob("*.html")
    assert page.read_text() == (sweep / "report" / "index.html").read_text()


def test_the_workspace_shows_what_is_told(sweep):
    """Each key that it plots is one that a run has, and its filter finds the runs of the sweep."""
    hypothesis = experiment.load("2")
    s = report.section(hypothesis, sweep, "demo")
    made = publish.workspace(s, "us", "P")
    spec = made._to_model().spec.model_dump_json(by_alias=True, exclude_none=True)
    told = set()
    for task, name in (("ade20k", "ade20k"), ("coco", "coco"), ("recall", "recall")):
        ((one, file),) = from_reference(sweep / name, f"demo/{task}/mambaout_atto/seed_0")
        for message in tracking.story(one, file):
            told |= message.get("row", {}).keys() | message.get("content", {}).get("summary", {}).keys()
            about = message.get("open", {"tags": ["H2"], "config": {"scale": {"name": "demo"}}})
            assert "H2" in about["tags"] and about["config"]["scale"]["name"] == "demo"
    plotted = set()
    for panel in (panel for section in made.sections for panel in section.panels):
        plotted |= set(getattr(panel, "y", ()) if isinstance(getattr(panel, "y", ()), list) else ())
        plotted |= set(getattr(panel, "metrics", None) or ())
    assert {"val/box_ap_percent", "val/miou_percent", "final/top1_percent", "train/loss", "lr"} <= plotted
    assert plotted <= told
    for word in ("val/pictures", "tables/gates", "trainer/global_step", '"H2"', "Hypothesis 2, demo scale"):
        assert word in spec or word in made.name, word


def test_the_dashboard_says_where_everything_is(sweep, command, one_line_error):
    done = command("hypotheses.dashboard", f"paths.results={sweep}")
    assert done.returncode == 2 and "no W&B runs in" in done.stderr and "WANDB_MODE=offline make publish" in done.stderr
    (sweep / "wandb" / "offline-run-20260101_000000-x").mkdir(parents=True)
    done = command("hypotheses.dashboard", f"paths.results={sweep}")
    assert done.returncode == 0 and "report/index.html" in done.stdout
    assert f"wandb leet {sweep / 'wandb'}" in done.stdout


def test_publish_and_the_dashboard_say_what_they_take(sweep, capsys):
    for module, words in (
        (publish, ["--project P", "--entity E", "make publish HYP=1"]),
        (dashboard, ["make dashboard [ARGS="]),
    ):
        with pytest.raises(SystemExit) as left:
            module.main(["--help"])
        shown = capsys.readouterr().out
        assert left.value.code == 0 and all(word in shown for word in words)
    assert "HYP" not in shown
    with pytest.raises(UserError, match=r"^--project needs a value"):
        publish.main(["1", "--project"])
    with pytest.raises(UserError, match=r"2: make dashboard takes paths only"):
        dashboard.main(["2", f"paths.results={sweep}"])


def test_make_clean_leaves_what_w_and_b_keeps_of_other_scales(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    first = "20260101_000000"
    gone = [f"{f}offline-run-{first}-{n}" for f in ("", "earlier/") for n in ("demo-imagenet-a-seed_0-b", "smoke-a")]
    gone += [f"run-{first}-demo-coco-a", f"offline-run-{first}-verdict-hypothesis_1_demo"]
    stays = [f"earlier/run-{first}-paper-imagenet-a", f"offline-run-{first}-pilot-imagenet-a-demo-x", "data"]
    stays += [f"offline-run-{first}-verdict-hypothesis_1_pilot"]
    for name in (*gone, *stays):
        (tmp_path / "results/wandb" / name).mkdir(parents=True)
    (tmp_path / "results/wandb/workspaces.json").write_text("{}")
    subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
    left = {str(f.relative_to(tmp_path / "results/wandb")) for f in (tmp_path / "results/wandb").rglob("*")}
    assert left == {*stays, "earlier", "workspaces.json"}
    for words in ("RUN=a", "BUNDLE=b", "HYP=1"):
        done = subprocess.run(["make", "dashboard", words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2 and "make dashboard takes ARGS='paths.results=FOLDER' only" in done.stderr
