"""Shared by the tests: folders of their own, the command line as a user types it, and hand-made records."""

import copy
import functools
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hypotheses import allocator, bootstrap, experiment, metrics, record
from hypotheses.config import CONF, ROOT

torch.set_num_threads(1)  # tests run side by side
for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "ARGS"):  # `make test ARGS=...` is not for the make that a test types
    os.environ.pop(name, None)

os.environ["WANDB_MODE"] = "disabled"  # but where a test is about it

BACKBONES = sorted(p.stem for p in (CONF / "backbone").glob("*.yaml"))
SIZES = ("atto", "femto", "kobe", "tiny", "small", "base")


def trained() -> list[str]:
    """The backbones that tests train: every arm at its smallest size, and every network that is no arm. The others differ from one of
    these in width and depth alone, and are built and measured by tests without training."""
    arms: dict[tuple[str, str], list[str]] = {}
    others = []
    for name in BACKBONES:
        family, _, rest = name.partition("_")
        size, _, arm = rest.partition("_")
        if arm and size in SIZES:
            arms.setdefault((family, arm), []).append(name)
        else:
            others.append(name)
    return sorted(others + [min(names, key=lambda name: SIZES.index(name.split("_")[1])) for names in arms.values()])


@pytest.fixture(autouse=True)
def ordinary_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run inside a test does not change the allocator of all tests after it, which would keep gigabytes."""
    monkeypatch.setattr(allocator, "keep_memory", lambda: False)


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """Overrides that keep a run inside the test's folder."""
    return [f"paths.{name}={tmp_path / name}" for name in ("data", "outputs", "results")]


@pytest.fixture(scope="session")
def command():
    """Type `python -m <module> <arguments>` and get the finished process, its output as text."""

    def run(module: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            timeout=600,
        )

    return run


@pytest.fixture
def one_line_error(command):
    """Type a command that must fail: exit code 2, one line on stderr, no traceback; returns that line."""

    def run(module: str, *arguments: str, **environment: str) -> str:
        done = command(module, *arguments, **environment)
        assert done.returncode == 2, done.stdout + done.stderr
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    return run


@pytest.fixture
def hypothesis() -> experiment.Experiment:
    return experiment.load("1")


@functools.cache
def composed(task: str, backbone: str) -> dict:
    return experiment.config_of("demo", task, backbone, 0, [])


@pytest.fixture
def check_kept():
    """What a run has kept of its images gives its own metrics back, to what its library rounds to."""

    def check(stored: record.Record, results: Path) -> None:
        kept = bootstrap.read(stored, results)
        assert kept and bootstrap.size(kept) == stored["metrics"]["val_images"]
        known = metrics.METRICS[stored["config"]["task"]["name"]]
        made = [name for name in known if name in bootstrap.METRICS]
        assert made
        for name in made:
            again = bootstrap.resampled(name, kept, np.ones((1, bootstrap.size(kept)), int))[0]
            assert again == pytest.approx(stored["metrics"][name], abs=known[name].step / 2 + 1e-4), name

    return check


@pytest.fixture(scope="session")
def make_records():
    """Hand-made records of the demo: {backbone: [metric of seed 0, 1, ...]} -> {(backbone, seed): record}, of classification
    unless another task is named."""
    template = {
        "curve": [{"epoch": e + 1, "train_loss": 1.0 / (e + 1)} for e in range(8)],
        "seconds": 10.0,
        "provenance": {
            "commit": "c" * 40,
            "dirty": False,
            "code": "code",
            "python": "3.11",
            "packages": {"torch": "2"},
            "platform": "test",
            "device": "1 x CPU",
            "hardware": {"devices": 1},
            "kernels": {"scan": "cpp", "gate": "fused"},
            "threads": 1,
            "command": "test",
            "registered": {
                file.stem: hashlib.sha256(file.read_bytes()).hexdigest() for file in experiment.FOLDER.glob("*.yaml")
            },
        },
    }

    names = {"imagenet": "top1_percent", "recall": "top1_percent", "coco": "box_ap_percent", "ade20k": "miou_percent"}

    def make(values: dict[str, list[float]], task: str = "imagenet") -> dict:
        records = {}
        for backbone, numbers in values.items():
            config = composed(task, backbone)
            for seed, metric in enumerate(numbers):
                r = copy.deepcopy(template)
                r["config"] = {k: copy.deepcopy(config[k]) for k in ("task", "backbone", "scale", "recipe")} | {
                    "seed": seed
                }
                r["address"] = f"demo/{task}/{backbone}/seed_{seed}"
                r["identity"] = r["data_fingerprint"] = f"data {seed}"
                r["metrics"] = {names[task]: metric, "val_images": 1000}
                if task == "coco":
                    r["metrics"]["mask_ap_percent"] = metric - 10
                larger = "ssm" in backbone or "sham" in backbone
                r["cost"] = {"params": 120 if larger else 100, "macs": 170 if larger else 100}
                for row in r["curve"]:
                    row[names[task]] = metric - 0.5
                records[backbone, seed] = r
        return records

    return make


@pytest.fixture(scope="session")
def memory(make_records):
    """Records of the positive control as it should come out, by task."""
    values = {
        "mambaout_atto": [10.0, 9.5, 10.5],
        "mambaout_atto_ssm": [90.0, 85.0, 88.0],
        "mambaout_atto_sham": [11.0, 9.0, 10.0],
    }
    return {"recall": make_records(values, "recall")}
