"""A killed run goes on from its checkpoint, and ends with the same bits as one that was never killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hypotheses import checkpoint, record, standing
from hypotheses.config import ROOT, compose
from hypotheses.errors import UserError
from hypotheses.run import run

# stochastic depth, dropout and samples of proposals: what draws random numbers in training
RUNS = {
    "imagenet": [
        "scale=smoke", "recipe.data.train_images=64", "recipe.batch_size=8", "recipe.epochs=3", "recipe.drop_path=0.3",
    ],
    "coco": ["scale=demo", "tag=short", "recipe.data.train_images=24", "recipe.data.val_images=4", "recipe.batch_size=4",
        "recipe.epochs=3", "recipe.schedule={warmup_steps: 4, milestones: [2]}", "recipe.drop_path=0.3",],
    "ade20k": [
        "scale=demo", "tag=short", "recipe.data.train_images=24", "recipe.data.val_images=4", "recipe.batch_size=4",
        "recipe.steps=16", "recipe.validate_every=6", "recipe.schedule={warmup_steps: 4}", "recipe.drop_path=0.3",
    ],
}  # fmt: skip


def asked(task: str, folder: Path, data: Path, *more: str) -> Any:
    return compose(
        [
            f"task={task}", "hardware=cpu", "hardware.threads=1", "hardware.checkpoint_seconds=0", *RUNS[task],
            f"paths.data={data}", f"paths.outputs={folder / 'outputs'}", f"paths.results={folder / 'results'}", *more,
        ]
    )  # fmt: skip


def start(config: Any, log: Path) -> int:
    """A run in a process of its own, whose imports are those of this one; its number."""
    if (child := os.fork()) == 0:
        try:
            os.setsid()
            with open(log, "a") as output:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
            run(config)
            sys.stdout.flush()
            os._exit(0)
        except SystemExit as error:
            os._exit(int(error.code or 0))
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
    return child


def end(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def left(config: Any) -> dict[str, Any]:
    """What a finished run has left that must not depend on how it came to its end."""
    found = record.read(record.path(config))
    folder = Path(config["paths"]["outputs"], found["address"])
    rows = [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "weights": torch.load(folder / "weights.pt", weights_only=True),
        "metrics": found["metrics"],
        "curve": found["curve"],
        "predictions": found["provenance"]["predictions"],
        "rows": rows,
    }


def went_on(found: record.Record) -> list[int]:
    """The steps at which attempts at a run went on from a checkpoint."""
    return [attempt["step"] for attempt in found["provenance"]["attempts"][1:]]


def same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a["weights"].keys() == b["weights"].keys()
    for name, tensor in a["weights"].items():
        assert torch.equal(tensor, b["weights"][name]), name
    rest = [found | {"weights": None, "rows": [row | {"seconds": None} for row in found["rows"]]} for found in (a, b)]
    assert rest[0] == rest[1]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """What a run leaves, and how long it takes, by task and workers; and the data that all of a task share."""
    known: dict[Any, Any] = {}

    def find(task: str, *more: str) -> tuple[dict[str, Any], float, Path]:
        if (task, more) not in known:
            folder = tmp_path_factory.mktemp(task)
            data = known.setdefault(task, folder / "data")
            config = asked(task, folder, data, *more)
            begun = time.monotonic()
            assert end(start(config, folder / "log.txt")) == 0, (folder / "log.txt").read_text()
            known[task, more] = left(config), time.monotonic() - begun, data
        whole, seconds, data = known[task, more]
        return whole, seconds, data

    return find


def begun(child: int, config: Any) -> bool:
    """Wait until a run trains; whether it came to that."""
    beat = Path(config["paths"]["outputs"], record.address(config), "heartbeat.json")
    while not beat.exists():
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return False
        time.sleep(0.005)
    return True


def killed_at_random(task: str, kills: int, folder: Path, uninterrupted: Any, *more: str) -> list[int]:
    """Kill runs until it was done so often, letting each come to its end in between; the steps at which they went on."""
    whole, seconds, data = uninterrupted(task, *more)
    rng, resumed, done, number = random.Random(task), [], 0, 0
    while done < kills:
        place = folder / str(number)
        place.mkdir()
        config, log = asked(task, place, data, *more), place / "log.txt"
        while True:
            (place / "outputs" / record.address(config) / "heartbeat.json").unlink(missing_ok=True)
            child = start(config, log)
            if done < kills:
                # half of them anywhere, half of them after the training has begun
                if done % 2 and begun(child, config):
                    time.sleep(rng.uniform(0, whole["rows"][-1]["seconds"]))
                else:
                    time.sleep(rng.uniform(0, seconds))
                try:
                    os.killpg(child, signal.SIGKILL)
                except ProcessLookupError:  # so early that it has no group of its own yet
                    os.kill(child, signal.SIGKILL)
            code = end(child)
            if code == 0:
                break
            assert code == -signal.SIGKILL, log.read_text()
            done += 1
        same(left(config), whole)
        resumed += went_on(record.read(record.path(config)))
        # where the last kill came between the record and the end, the sweep removes them
        assert not (standing.folder(config) / "checkpoints").exists() or "already recorded" in log.read_text()
        number += 1
    return resumed


@pytest.mark.parametrize("task", ["imagenet", pytest.param("ade20k", marks=pytest.mark.slow)])
def test_a_run_killed_three_times_ends_with_the_same_bits(task, tmp_path, uninterrupted):
    killed_at_random(task, 3, tmp_path, uninterrupted, "hardware.workers=0")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("task", RUNS)
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(task, workers, tmp_path, uninterrupted):
    """In a step, in a validation, while a checkpoint is written, between epochs: wherever it happens to be. At 20 moments of each
    way of training, half of them with processes that load data."""
    resumed = killed_at_random(task, 10, tmp_path, uninterrupted, f"hardware.workers={workers}")
    assert len(set(resumed)) > 2  # the kills were spread over the runs


@pytest.mark.slow
@pytest.mark.parametrize(("task", "fault"), [*((task, "SIGKILL") for task in RUNS), ("imagenet", "SIGTERM")])
def test_two_processes_of_which_one_is_killed_go_on_with_the_same_bits(task, fault, tmp_path, command):
    """torchrun and gloo on the CPU; the other process is ended too, and the same command goes on. A request to stop to one of them
    leaves a checkpoint of both."""
    common = ["hardware=ddp", "hardware.accelerator=cpu", "hardware.devices=2", "hardware.checkpoint_seconds=0"]

    def run_it(name: str, **environment: str) -> Any:
        words = [f"paths.outputs={tmp_path / name / 'outputs'}", f"paths.results={tmp_path / name / 'results'}"]
        data = f"paths.data={tmp_path / 'data'}"
        words = [f"task={task}", "backbone=mambaout_atto", *RUNS[task], *common, *words, data]
        return command("hypotheses.run", *words, **environment), compose(words)

    done, config = run_it("whole")
    assert done.returncode == 0, done.stderr
    whole = left(config)
    faults = {"PYTHONPATH": str(ROOT / "tests" / "faults"), "FAULT": f"{fault},4,mambaout_atto,{tmp_path / 'flag'}"}
    done, config = run_it("killed", **faults)
    assert done.returncode != 0 and not record.path(config).exists()
    done, config = run_it("killed", **faults)
    assert done.returncode == 0, done.stderr
    same(left(config), whole)
    assert went_on(record.read(record.path(config))) == [3 if fault == "SIGKILL" else 4]


@pytest.mark.parametrize("task", ["imagenet", *(pytest.param(t, marks=pytest.mark.slow) for t in ("ade20k", "coco"))])
def test_workers_change_no_bit(task, uninterrupted):
    """Neither the order, nor the augmentation, nor what is drawn in training depends on who loads the images."""
    same(uninterrupted(task, "hardware.workers=0")[0], uninterrupted(task, "hardware.workers=2")[0])


def killed_in(config: Any, log: Path, monkeypatch: Any, moment: str) -> None:
    """A run that is killed at its checkpoint of step 5."""

    def die(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    keep = checkpoint.Checkpoints.keep

    aside = checkpoint.write_aside

    def dying(self: checkpoint.Checkpoints, target: Path, step: int) -> None:
        if step == 5 and moment == "before the index":
            die()
        keep(self, target, step)
        if step == 5:
            die()

    def dying_aside(target: Path, content: Any) -> None:
        if target.name == "step_5.pt" and moment == "in the middle of the file":
            (target.parent / ".step_5.pt.x").write_bytes(content[:1000])
            die()
        if target.name == "step_5.pt" and moment == "before the rename":
            monkeypatch.setattr(record.os, "replace", die)
        aside(target, content)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.Checkpoints, "keep", dying)
        patched.setattr(checkpoint, "write_aside", dying_aside)
        assert end(start(config, log)) == -signal.SIGKILL, log.read_text()


@pytest.fixture
def stopped(tmp_path, uninterrupted, monkeypatch):
    """A run of classification that was killed after step 5: its config, its checkpoints, and what it should leave."""
    whole, _, data = uninterrupted("imagenet", "hardware.workers=0")
    config = asked("imagenet", tmp_path, data, "hardware.workers=0")
    folder = tmp_path / "outputs" / record.address(config) / "checkpoints"
    killed_in(config, tmp_path / "log.txt", monkeypatch, "after it")
    return config, folder, whole


def test_two_checkpoints_are_kept_and_none_after_the_record(stopped, capsys):
    config, folder, whole = stopped
    entries = checkpoint.listed(folder)
    assert [entry["step"] for entry in entries] == [5, 4]
    assert {file.name for file in folder.iterdir()} == {"step_5.pt", "step_4.pt", "index.json"}
    made = run(config)
    assert "goes on from its checkpoint of step 5" in capsys.readouterr().out
    assert made and went_on(made) == [5]
    same(left(config), whole)
    assert not folder.exists()


@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(damage, stopped, capsys):
    config, folder, whole = stopped
    newest, before = checkpoint.listed(folder)
    file = folder / newest["file"]
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    else:
        middle = len(content) // 2
        file.write_bytes(
            content[:middle] if damage == "cut" else content[:middle] + b"\0" * 64 + content[middle + 64 :]
        )
    made = run(config)
    assert f"warning: {file} is not whole: it is passed over for an earlier one" in capsys.readouterr().err
    assert made and went_on(made) == [before["step"]]
    same(left(config), whole)


@pytest.mark.parametrize("content", ["", '[{"file', "{}", "[5]", '[{"file": "x"}]'])
def test_an_index_that_cannot_be_read_means_to_begin_anew(content, stopped):
    config, folder, whole = stopped
    (folder / "index.json").write_text(content)
    made = run(config)
    assert made and went_on(made) == []
    same(left(config), whole)


@pytest.mark.parametrize(("key", "value"), [("code", "other"), ("packages", {"torch": "1"}), ("kernels", {})])
def test_a_checkpoint_by_other_code_waits_for_the_user_s_word(key, value, stopped, capsys):
    config, folder, whole = stopped
    entries = checkpoint.listed(folder)
    for entry in entries:
        entry["attempts"][-1] |= {key: value}
    (folder / "index.json").write_text(json.dumps(entries))
    with pytest.raises(UserError, match=rf"was written by another {key}.*resume=any .* resume=never begins anew"):
        run(config)
    assert checkpoint.listed(folder) == entries
    made = run(config | {"resume": "any"})
    assert made and went_on(made) == [entries[0]["step"]]
    same(left(config), whole)


def test_resume_never_begins_anew(stopped):
    config, _, whole = stopped
    made = run(config | {"resume": "never"})
    assert made and went_on(made) == []
    same(left(config), whole)


def test_another_configuration_at_the_same_address_begins_anew(stopped, tmp_path):
    config, _, _ = stopped
    recipe = config["recipe"] | {"optimizer": config["recipe"]["optimizer"] | {"lr": 1e-4}}
    made = run(config | {"recipe": recipe})
    assert made and went_on(made) == []


@pytest.mark.parametrize("moment", ["before the rename", "before the index", "in the middle of the file"])
def test_killed_while_a_checkpoint_is_written(moment, tmp_path, uninterrupted, monkeypatch):
    whole, _, data = uninterrupted("imagenet", "hardware.workers=0")
    config = asked("imagenet", tmp_path, data, "hardware.workers=0")
    killed_in(config, tmp_path / "log.txt", monkeypatch, moment)
    made = run(config)
    assert made and went_on(made) == [4]
    same(left(config), whole)


def stopped_in(config: Any, log: Path, monkeypatch: Any, ask: Callable[[], None]) -> tuple[int, str]:
    """A run that is asked to stop in its fourth step: its exit code, and what it has printed."""
    due, asks = checkpoint.Checkpoints.due, iter(range(1, 100))

    def asked_to_stop(self: checkpoint.Checkpoints) -> bool:
        if next(asks) == 4:
            ask()
        return due(self)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.Checkpoints, "due", asked_to_stop)
        return end(start(config, log)), log.read_text()


@pytest.mark.parametrize(
    ("task", "number"),
    [
        pytest.param(t, n, marks=[pytest.mark.slow] * (t != "imagenet" and (t, n) != ("ade20k", signal.SIGTERM)))
        for t in RUNS
        for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    ],
)
def test_a_request_to_stop_leaves_a_checkpoint_of_the_step(task, number, tmp_path, uninterrupted, monkeypatch):
    """With checkpoints far apart, so that it is the request that leaves one."""
    whole, _, data = uninterrupted(task, "hardware.workers=0")
    config = asked(task, tmp_path, data, "hardware.workers=0", "hardware.checkpoint_seconds=1000")
    code, log = stopped_in(config, tmp_path / "log.txt", monkeypatch, lambda: os.kill(os.getpid(), number))
    assert code == 128 + number and "stopping at the end of this step" in log
    made = run(config)
    assert made and went_on(made) == [4]
    same(left(config), whole)


def test_seconds_are_those_of_all_attempts(stopped):
    config, folder, _ = stopped
    entries = checkpoint.listed(folder)
    entries[0]["seconds"] = 1000.0
    (folder / "index.json").write_text(json.dumps(entries))
    made = run(config)
    assert made and 1000 < made["seconds"] < 1100


@pytest.mark.parametrize("task", ["imagenet", pytest.param("coco", marks=pytest.mark.slow), "ade20k"])
def test_a_disk_that_is_full_for_checkpoints_ends_no_run(task, tmp_path, uninterrupted, monkeypatch, capsys):
    """By a limit on the size of a file, which the system meets as it meets a full disk; weights and record are smaller."""
    whole, _, data = uninterrupted(task, "hardware.workers=0")
    config = asked(task, tmp_path, data, "hardware.workers=0")
    write = checkpoint.write_aside

    def full(target: Path, content: Any) -> None:
        if target.suffix == ".pt":
            with open("/dev/full", "wb") as device:
                device.write(content)
        write(target, content)

    monkeypatch.setattr(checkpoint, "write_aside", full)
    made = run(config)
    assert made and capsys.readouterr().err.count("warning: no checkpoint is written at") == 1
    same(left(config), whole)


def test_a_full_disk_leaves_the_checkpoints_that_are_there(tmp_path, monkeypatch):
    checkpoints = checkpoint.Checkpoints(tmp_path, "me", {}, 0.0)
    checkpoints.write(1, b"one")
    monkeypatch.setattr(checkpoint, "write_aside", lambda *_: Path("/dev/full").write_bytes(b"x"))
    checkpoints.write(2, b"two")
    assert [e["step"] for e in checkpoint.listed(tmp_path / "checkpoints")] == [1]
    assert {f.name for f in (tmp_path / "checkpoints").iterdir()} == {"step_1.pt", "index.json"}


def test_writing_takes_a_small_share_of_the_time(tmp_path, monkeypatch):
    """The pause follows what the last one has cost."""
    clock = [0.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: clock[0])
    checkpoints = checkpoint.Checkpoints(tmp_path, "me", {}, 30.0)
    keep = checkpoints.keep

    def slow(target: Path, step: int) -> None:
        keep(target, step)
        clock[0] += 3.0

    monkeypatch.setattr(checkpoints, "keep", slow)

    due = []
    for second in range(1, 400):
        clock[0] += 1.0
        if checkpoints.due():
            due.append(second)
            checkpoints.write(second, b"x")
    assert due == [30, 180, 330]  # at first after 30 seconds, then 3 / 0.02


@pytest.mark.parametrize(
    ("task", "number"),
    [
        pytest.param(t, n, marks=[pytest.mark.slow] * ((t, n) != ("imagenet", signal.SIGINT)))
        for t in RUNS
        for n in (signal.SIGINT, signal.SIGTERM)
    ],
)
def test_a_request_to_stop_spares_the_processes_that_load_data(task, number, tmp_path, uninterrupted, monkeypatch):
    """Ctrl-C on a terminal reaches them too, as does a cluster's signal: the step that is under way still gets its batch, and the
    checkpoint is written."""
    whole, _, data = uninterrupted(task, "hardware.workers=0")
    config = asked(task, tmp_path, data, "hardware.workers=2", "hardware.checkpoint_seconds=1000")

    def of_all() -> None:
        subprocess.run(["kill", f"-{number.value}", "--", f"-{os.getpgid(0)}"], process_group=0, check=True)
        time.sleep(0.5)

    code, log = stopped_in(config, tmp_path / "log.txt", monkeypatch, of_all)
    assert code == 128 + number, log
    made = run(config)
    assert made and went_on(made) == [4]
    same(left(config), whole)


def test_a_process_ends_though_its_loading_processes_are_alive():
    """They are where something holds the iterator of a loader to the end, as with a GPU: multiprocessing ends and awaits them."""
    program = """
import torch
from torch.utils.data import DataLoader, TensorDataset
from hypotheses.stopping import begin_worker
loader = DataLoader(
    TensorDataset(torch.ones(4)), num_workers=2, persistent_workers=True, worker_init_fn=begin_worker,
    multiprocessing_context="fork",
)
torch.held = iter(loader)
print(sum(len(batch) for batch, in torch.held))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("4\n", 0), done.stderr


def test_accumulated_gradients_and_rare_validations_go_on_with_the_same_bits(tmp_path, monkeypatch):
    """A step of two passes, a validation every second epoch, killed in the epoch without one."""
    more = ["hardware.workers=0", "hardware.max_batch_per_device=4", "recipe.validate_every=2", "recipe.epochs=4"]
    whole = asked("imagenet", tmp_path / "whole", tmp_path / "data", *more)
    assert run(whole)
    config = asked("imagenet", tmp_path / "killed", tmp_path / "data", *more)
    killed_in(config, tmp_path / "log.txt", monkeypatch, "after it")
    with pytest.raises(
        UserError, match=r"was written with images=4, now 8: give the run the devices and hardware.max_batch_per_device"
    ):
        run(asked("imagenet", tmp_path / "killed", tmp_path / "data", *more[:1], *more[2:]))
    made = run(config)
    assert made and went_on(made) == [5]
    same(left(config), left(whole))


def test_a_nan_is_kept_in_no_checkpoint(tmp_path, uninterrupted, monkeypatch):
    """Found before it is written, though no heartbeat has looked at the loss: the same command goes on from before it."""
    from hypotheses.tasks import imagenet

    whole, _, data = uninterrupted("imagenet", "hardware.workers=0")
    config = asked("imagenet", tmp_path, data, "hardware.workers=0")
    step = imagenet.Classification.training_step

    def poisoned(self: Any, batch: Any, batch_index: int) -> Any:
        if self.trainer.global_step == 4:
            next(self.model.parameters()).data.fill_(float("nan"))
        return step(self, batch, batch_index)

    with monkeypatch.context() as patched:
        patched.setattr(imagenet.Classification, "training_step", poisoned)
        with pytest.raises(FloatingPointError, match="a parameter is no finite number after step 5"):
            run(config)
    made = run(config)
    assert made and went_on(made) == [4]
    same(left(config), whole)


def test_what_was_gone_on_from_by_other_code_is_told(stopped):
    config, folder, _ = stopped
    entries = checkpoint.listed(folder)
    for entry in entries:
        entry["attempts"][-1] |= {"code": "other", "commit": "abcdef1234"}
    (folder / "index.json").write_text(json.dumps(entries))
    made = run(config | {"resume": "any"})
    assert made and [a["code"] for a in made["provenance"]["attempts"]] == ["other", record.code_fingerprint()]
    assert record.stale(made) == ["code (of commit abcdef123, until a later step)"]
