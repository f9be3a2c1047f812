"""The environment that `make` sets up, on a small lock file: interrupted, made, not made again."""

import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from hypotheses.config import ROOT


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml", "README.md", "LICENSE", "NOTICE", "src", "conf"):
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    lock = (ROOT / "requirements.lock").read_text().splitlines()
    (tmp_path / "requirements.lock").write_text(
        "\n".join(x for x in lock if x.startswith(("pip==", "setuptools=="))) + "\n"
    )
    return tmp_path


def make(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *words], cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_an_interrupted_set_up_goes_on_and_a_finished_one_is_not_repeated(copy):
    first = subprocess.Popen(["make", "setup"], cwd=copy, start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (copy / ".venv/bin/python").exists():
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    subprocess.run(["pkill", f"-{signal.SIGKILL.value}", "-g", str(first.pid)], check=True)
    first.wait()
    assert not (copy / ".venv/ready").exists()
    broken = copy / ".venv/lib/python3.11/site-packages/torch-0.0.dist-info"  # as pip leaves it when it is killed
    broken.mkdir(parents=True)
    (broken / "METADATA").write_text("Name: torch\nVersion: 0.0\n")
    second = make(copy, "setup")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "setting up the environment" in second.stdout and "environment ready" in second.stdout
    assert (copy / ".venv/ready").exists() and not broken.exists()
    third = make(copy, "setup")
    assert third.returncode == 0 and "setting up" not in third.stdout


@pytest.mark.slow
def test_a_second_make_waits_for_the_set_up_of_the_first(copy):
    words = {"cwd": copy, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    both = []
    for _ in range(2):
        both.append(subprocess.Popen(["make", "setup"], **words))
        time.sleep(0.5)
    first, second = (process.communicate(timeout=300)[0] for process in both)
    assert [process.returncode for process in both] == [0, 0], first + second
    assert "environment ready" in first and "setting up" in first
    assert "another make is setting up the environment" in second and "environment ready" not in second


def test_what_is_missing_is_said_before_anything_is_installed(copy):
    done = make(copy, "sweep")
    assert done.returncode == 2 and "error: say which hypothesis: make sweep HYP=1" in done.stderr
    done = make(copy, "setup", "PYTHON=/bin/false")
    assert done.returncode == 2 and "error: Python 3.11 is needed" in done.stderr
    assert not (copy / ".venv").exists()


def test_a_mistyped_option_is_refused_and_several_arguments_are_not(copy):
    done = make(copy, "-n", "sweep", "HYP=1", "SEED=10")
    assert done.returncode == 2 and "unknown option SEED; did you mean SEEDS?" in done.stderr
    done = make(copy, "clean", "SCALE=paper")
    assert done.returncode == 2 and "error: make clean takes no options" in done.stderr
    done = make(copy, "-n", "help", "ARGS=paths.data=/a paths.results=/b")
    assert done.returncode == 0, done.stderr


def test_a_launcher_is_for_a_sweep_alone(copy):
    done = make(copy, "-n", "sweep", "HYP=1", "LAUNCHER=slurm")
    assert done.returncode == 0 and "-m hypotheses.sweep 1 " in done.stdout and "--launcher slurm" in done.stdout
    for target in ("plan", "status", "report", "verify"):
        done = make(copy, target, "HYP=1", "LAUNCHER=slurm")
        assert done.returncode == 2 and f"error: make {target} takes no LAUNCHER" in done.stderr


def test_help_lists_every_target(copy):
    shown = make(copy, "help").stdout
    for target in ("setup", "sweep", "report", "check", "test", "test-slow", "docs", "bench", "clean", "help"):
        assert f"make {target} " in shown
    assert not (copy / ".venv").exists()
