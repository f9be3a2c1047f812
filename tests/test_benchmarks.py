"""The benchmarks run; what they measure is no matter of a test."""

import subprocess
import sys

import pytest

from hypotheses.config import ROOT


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
