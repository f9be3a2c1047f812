"""The benchmarks run; what they measure is no matter of a test."""

import csv
import importlib.util
import re
import subprocess
import sys

import pytest

from conftest import BACKBONES
from hypotheses.config import ROOT


def run(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=ROOT, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mambapy") is None, reason="the peers are installed by `make bench` only")
def test_the_scan_is_measured():
    shown = run("benchmarks/scan.py", "--accuracy")
    assert shown.count("ours, compiled") == 4 and "mambapy" in shown.splitlines()[-1]
    errors = [float(e) for e in re.findall(r"(?:y|d\w+) (\d\.\de[-+]\d+)", shown)]
    assert len(errors) == 4 * 4 * 7 and max(errors) <= 1e-6


@pytest.mark.slow
def test_the_networks_are_measured():
    shown = run("benchmarks/backbone.py", "--rounds", "1", "--mode", "inference", "--precision", "float32")
    assert shown.count("x timm") == 2
    difference = re.search(r"largest difference of the outputs with the same weights (\S+)", shown)
    assert difference and float(difference[1]) < 1e-5


@pytest.mark.slow
def test_the_arms_are_measured():
    shown = run("benchmarks/backbone.py", "--model", "mambaout_atto", "--arms", "--rounds", "1")
    assert shown.count("x mambaout_atto's") == sum(name.startswith("mambaout_atto") for name in BACKBONES)


@pytest.mark.slow
def test_the_trainers_overhead_is_measured(tmp_path):
    done = subprocess.run(
        [sys.executable, "benchmarks/trainer_overhead.py", "--rounds", "1", "--data", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Lightning / plain loop = ") == 2 and "1 rounds of 93 steps" in done.stdout


@pytest.mark.slow
def test_the_estimate_is_measured(tmp_path):
    asked = "scale=paper,backbone=mambaout_atto,recipe.batch_size=8"
    shown = run("benchmarks/estimate.py", "--steps", "3", "--csv", str(tmp_path / "steps.csv"), asked)
    assert "8 images: " in shown and "x estimated" in shown
    with open(tmp_path / "steps.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["run"] == asked and float(row["seconds"]) > 0 and float(row["memory_gib"]) > 0


@pytest.mark.slow
def test_loading_is_measured():
    shown = run("benchmarks/loading.py", "--images", "256", "--rounds", "2")
    assert shown.count(" images/s (median of 2 rounds of 192 images)") == 2 and "ours x timm: " in shown


@pytest.mark.slow
def test_the_error_rates_are_simulated():
    shown = run("benchmarks/error_rates.py", "--simulations", "400")
    wrong = [float(rate) for rate in re.findall(r"^ +([\d.]+) \[[\d., ]+\]  H\d", shown, re.MULTILINE)]
    one_way = wrong.pop(8)
    assert len(wrong) == 10 and max(wrong) <= 5 + 3 * (5 * 95 / 400) ** 0.5
    # a sign is asked of each way to vary the length: by chance it is the right one half of the time at a look, more often at one of three
    assert 10 < one_way < 75
    assert len(re.findall(r"^  H\d [\d.]+ ", shown, re.MULTILINE)) == 20
