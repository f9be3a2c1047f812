"""The runner, from the command line and in this process: one valid record per run, skipped the second time."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from conftest import trained
from hypotheses import bootstrap, claims, experiment, record
from hypotheses.config import ROOT, compose
from hypotheses.errors import UserError
from hypotheses.run import run

SMOKE = ["scale=smoke", "hardware=cpu"]
SHORT = [
    "recipe.data.train_placements=1",
    "recipe.data.val_placements=1",
    "recipe.epochs=1",
    "recipe.schedule.warmup_epochs=0",
    "hardware=cpu",
    "tag=short",
]


@pytest.mark.parametrize("backbone", [pytest.param(b, marks=[pytest.mark.slow] * ("_base" in b)) for b in trained()])
def test_a_smoke_run_leaves_one_valid_record_and_is_skipped_the_second_time(
    backbone, paths, tmp_path, capsys, check_kept
):
    config = compose([*paths, *SMOKE, f"backbone={backbone}", "seed=3"])
    made = run(config)
    files = list((tmp_path / "results/records").rglob("*"))
    assert {f for f in files if f.is_file()} == {
        record.path(config),
        bootstrap.path(record.path(config)),
        record.path(config).with_suffix(".jpg"),
        record.path(config).with_suffix(".jsonl"),
    }
    assert {f.name for f in (tmp_path / "results").iterdir()} == {"records", "registered", "attempts", "provenance"}
    assert (
        record.path(config).relative_to(tmp_path).as_posix() == f"results/records/smoke/imagenet/{backbone}/seed_3.json"
    )
    stored = record.read(record.path(config))
    assert stored == json.loads(json.dumps(made))
    assert 0 <= stored["metrics"]["top1_percent"] <= 100 and stored["metrics"]["val_images"] == 8
    assert stored["cost"]["params"] == sum(
        w.numel() for w in torch.load(tmp_path / "outputs" / made["address"] / "weights.pt", weights_only=True).values()
    )
    assert stored["config"]["backbone"]["name"] == backbone
    assert {"commit", "packages", "device", "threads", "command"} <= stored["provenance"].keys()
    check_kept(stored, tmp_path / "results")
    for file in experiment.FOLDER.glob("*.yaml"):  # what was claimed when it began
        sha256 = stored["provenance"]["registered"][file.stem]
        assert experiment.registered_copy(tmp_path / "results", file.stem, sha256).read_bytes() == file.read_bytes()
    rows = (tmp_path / "outputs" / made["address"] / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(r)["step"] for r in rows] == [2]
    before = record.path(config).stat()
    capsys.readouterr()
    assert run(config) == stored
    assert "already recorded" in capsys.readouterr().out
    assert record.path(config).stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.slow
def test_the_same_seed_gives_the_same_metrics_and_weights_twice(paths, tmp_path, command):
    """Two processes, real digits; another seed gives something else."""
    made = []
    for folder, seed in (("one", 0), ("two", 0), ("three", 1)):
        places = [paths[0], *(f"paths.{n}={tmp_path / folder / n}" for n in ("outputs", "results"))]
        done = command(
            "hypotheses.run", "backbone=mambaout_atto_ssm", f"seed={seed}", "hardware.threads=1", *places, *SHORT
        )
        assert done.returncode == 0, done.stderr
        weights = torch.load(next((tmp_path / folder).rglob("weights.pt")), weights_only=True)
        r = record.read(next((tmp_path / folder).rglob("seed_*.json")))
        made.append((r["metrics"], r["curve"], torch.cat([w.flatten() for w in weights.values()])))
    assert made[0][:2] == made[1][:2] and torch.equal(made[0][2], made[1][2])
    assert made[0][0] != made[2][0]


def test_another_config_at_the_same_address_is_refused_with_the_difference(paths):
    run(compose([*paths, *SMOKE]))
    with pytest.raises(UserError, match=r"recipe\.epochs: recorded 1, asked 2.*add tag=NAME"):
        run(compose([*paths, *SMOKE, "recipe.epochs=2"]))
    tagged = compose([*paths, *SMOKE, "recipe.epochs=2", "tag=longer"])
    assert run(tagged)["address"] == "smoke/imagenet/mambaout_atto+longer/seed_0"


def test_two_processes_do_not_train_the_same_run(paths, tmp_path):
    config = compose([*paths, *SMOKE])
    with (
        claims.held(tmp_path / "outputs" / record.address(config)),
        pytest.raises(UserError, match="another process is at this run now"),
    ):
        run(config)
    assert not record.path(config).exists()


def test_from_the_command_line_with_a_bar(paths, command):
    done = command("hypotheses.run", *SMOKE, *paths)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("smoke/imagenet/mambaout_atto/seed_0: top1_percent ")
    for word in ("2/2", "loss=", "top1_percent=", "00:00"):
        assert word in done.stderr
    assert "Warning" not in done.stderr and "Error" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["backbone=mambaout_smal"], "no backbone 'mambaout_smal'; did you mean mambaout_small?"),
        (["scale=huge"], "no scale 'huge'. Choose from: demo, paper, pilot, smoke"),
        (["task=coco", "scale=paper", "pretrained=none", "paths.coco=/nowhere"], "no /nowhere/train2017: expected in"),
        (["task=ade20k", "scale=pilots"], "no scale 'pilots'; did you mean pilot?"),
        (["bakbone=vit_tiny"], "no key 'bakbone'; did you mean backbone?"),
        (["recipe.epoch=3"], "no key 'recipe.epoch'; did you mean recipe.epochs?"),
        (["recipe.lr=1"], "no key 'recipe.lr'; did you mean recipe.optimizer.lr?"),
        (["recipe.batch_size=0"], "recipe.batch_size=0: give a number from 1"),
        (["hardware.threads=-3"], "hardware.threads=-3: give a number from 1"),
        (["recipe.optimizer.lr=-1"], "recipe.optimizer.lr=-1.0: give a number from 0"),
        (["recipe.precision=foo"], "recipe.precision=foo: choose one of 32-true"),
        (["recipe.mean=[0.2]"], "give three numbers each"),
        (["recipe.schedule.warmup_epochs=5"], "give fewer than epochs=5"),
        (["recipe.validate_every=0"], "recipe.validate_every=0: give a number from 1"),
        (["hardware=ddp", "hardware.accelerator=cpu"], "hardware.devices=2"),
        (["hardware=ddp", "hardware.accelerator=cpu", "hardware.devices=3"], "choose a multiple of 3 devices"),
        (["recipe.data.source=web"], "choose one of digits, imagenet, random"),
        (["paths.imagnet=/x"], "no key 'paths.imagnet'; did you mean paths.imagenet?"),
        (["seed.x=1"], "no key 'seed.x'"),
        (["paths.results=README.md"], "cannot write"),
        (["recipe.epochs=many"], "recipe.epochs: Value 'many' of type 'str' could not be converted to Integer"),
        (["+recipe.foo=1"], "recipe.foo: Key 'foo' not in"),
        (["+foo=1"], "no key 'foo'"),
        (["seed=one"], "seed=one: give a whole number from 0"),
        (["seed=-1"], "seed=-1: give a whole number from 0"),
        (["tag=a/b"], "tag=a/b: use letters"),
        (["recipe.epochs=[", "seed=0"], "cannot read 'recipe.epochs=['"),
        (["scale=pilot"], "no images at"),
        (["scale=paper", "paths.imagenet=/nowhere"], "no images at /nowhere/train"),
        (["hardware.accelerator=tpu", "scale=smoke"], "choose one of auto, cpu, gpu"),
        (["hardware=ddp_nodes"], "torchrun --nnodes 2"),
        (["recipe.batch_size=64", "scale=smoke"], "make it smaller"),
        (["backbone.mixer=attention", "scale=smoke"], "choose one of conv, identity"),
        (["+backbone.heads=3", "scale=smoke"], "backbone.heads: mambaout has no such key"),
        (["paths.results=/proc/nowhere"], "/proc/nowhere"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)  # fmt: skip
def test_a_mistake_is_one_line_that_names_the_fix(arguments, message, paths, one_line_error):
    assert message in one_line_error("hypotheses.run", *paths, *arguments)


def test_a_run_that_diverges_says_so_and_leaves_no_record(paths, tmp_path, command):
    done = command("hypotheses.run", *SMOKE, *paths, "recipe.optimizer.lr=1e30")
    assert done.returncode == 1 and not list((tmp_path / "results").rglob("*.json"))
    assert done.stderr.splitlines()[-1].startswith("error: training diverged: the loss is nan")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("hardware", ["gpu", "ddp"])
def test_no_gpu_is_said(hardware, paths, one_line_error):
    assert "use hardware=cpu" in one_line_error("hypotheses.run", *paths, "scale=smoke", f"hardware={hardware}")


def test_a_broken_yaml_is_named(tmp_path, paths):
    """In a copy of the project, since its files are what is broken."""
    for folder in ("src", "conf", "experiments"):
        shutil.copytree(ROOT / folder, tmp_path / "copy" / folder)
    (tmp_path / "copy" / "conf" / "backbone" / "vit_tiny.yaml").write_text("name: vit_tiny\n dim: [3\n")
    done = subprocess.run(
        [sys.executable, "-m", "hypotheses.run", "backbone=vit_tiny", *paths],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path / "copy" / "src")}, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "conf/backbone/vit_tiny.yaml, line 2: not valid YAML" in done.stderr


def test_a_corrupt_record_is_named_and_kept(paths, tmp_path, one_line_error):
    file = tmp_path / "results/records/smoke/imagenet/mambaout_atto/seed_0.json"
    file.parent.mkdir(parents=True)
    file.write_text('{"address": ')
    said = one_line_error("hypotheses.run", *paths, *SMOKE)
    assert f"{file} is not a valid record" in said and "restore it, or delete it and make sweep runs it again" in said
    assert file.read_text() == '{"address": '


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a few megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk]).returncode:
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_too_little_space_is_said_before_the_start(small_disk, paths, one_line_error):
    said = one_line_error("hypotheses.run", *SMOKE, *paths[:1], *paths[2:], f"paths.outputs={small_disk}")
    assert "no disk space: 4 MB free" in said and "make room or set paths.outputs=FOLDER" in said


def test_a_disk_that_fills_up_on_the_way_loses_nothing(small_disk, paths, monkeypatch, tmp_path):
    from hypotheses.errors import one_line

    monkeypatch.setattr("hypotheses.run.NEEDED_BYTES", 0)
    (small_disk / "ballast").write_bytes(
        bytes(4 * 2**20 - 2**14)
    )  # the record needs no more than what is left, the weights do
    config = compose([*SMOKE, *paths[:1], *paths[2:], f"paths.outputs={small_disk}", "backbone=mambaout_femto"])
    with pytest.raises(SystemExit) as end, one_line():
        run(config)
    assert end.value.code == 2
    assert not record.path(config).exists() and not list(small_disk.rglob("weights.pt"))
    (small_disk / "ballast").unlink()
    subprocess.run(["mount", "-o", "remount,size=200m", small_disk], check=True)
    assert run(config) and record.path(config).exists()


@pytest.mark.slow
def test_ctrl_c_in_a_run_leaves_no_record_and_it_runs_again(paths, tmp_path, command):
    words = ["hypotheses.run", *paths, "recipe.data.train_placements=1", "recipe.data.val_placements=1", "recipe.epochs=2",
             "hardware=cpu", "backbone=mambaout_atto_identity", "tag=killed"]  # fmt: skip
    process = subprocess.Popen([sys.executable, "-m", *words], stderr=subprocess.PIPE, text=True, cwd=ROOT)
    beat = tmp_path / "outputs/demo/imagenet/mambaout_atto_identity+killed/seed_0/heartbeat.json"
    deadline = time.monotonic() + 120
    while not (beat.exists() and json.loads(beat.read_text())["step"] > 0):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    assert not list(Path(tmp_path, "results").rglob("*.json"))
    assert "Traceback" not in said and ": nothing was recorded; the same command goes on with it" in said
    again = command(*words)
    assert again.returncode == 0, again.stderr
    assert len(list(Path(tmp_path, "results").rglob("*.json"))) == 1


@pytest.mark.slow
def test_two_processes_agree_with_one(paths, command, tmp_path, check_kept):
    """torchrun and gloo on the CPU: the same batches, and only the first process writes."""
    common = ["recipe.data={source: random, train_images: 64, val_images: 20}", "recipe.epochs=2", "recipe.mix=null"]
    for tag, more in (
        ("one", ["hardware=cpu"]),
        ("two", ["hardware=ddp", "hardware.accelerator=cpu", "hardware.devices=2"]),
    ):
        done = command("hypotheses.run", "scale=smoke", *paths, *common, *more, f"tag={tag}")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("top1_percent") == 1
    one, two = (record.read(next((tmp_path / "results").rglob(f"*+{tag}/seed_0.json"))) for tag in ("one", "two"))
    assert one["identity"] == two["identity"]
    for a, b in zip(one["curve"], two["curve"], strict=True):
        assert b["train_loss"] == pytest.approx(a["train_loss"], rel=1e-3)
    assert two["metrics"]["val_images"] == 20
    kept = [bootstrap.read(r, tmp_path / "results")["annotated"].tolist() for r in (one, two)]
    assert kept[0] == kept[1]  # in the order of the images
    check_kept(two, tmp_path / "results")
    assert two["metrics"]["val_loss"] == pytest.approx(one["metrics"]["val_loss"], rel=1e-3)
    assert "2 x CPU" in two["provenance"]["device"]
