"""Grids of ad-hoc runs by Hydra's multirun and its launchers: the same records as single runs."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from hypotheses import record
from hypotheses.config import compose
from hypotheses.run import run
from test_resume import left, same

ARMS = ("mambaout_atto", "mambaout_atto_identity")
TWO = ["hardware=ddp", "hardware.accelerator=cpu", "hardware.devices=2"]
PLAIN = ["scale=smoke", "hardware=cpu", "hardware.threads=1"]
LAUNCHERS = {
    "basic": [],
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra/launcher=submitit_local"],
}


def inside(folder: Path) -> list[str]:
    return [f"paths.{name}={folder / name}" for name in ("data", "outputs", "results")]


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """What two single runs leave, by arm."""
    folder = tmp_path_factory.mktemp("single")
    configs = {arm: compose([f"backbone={arm}", *PLAIN, *inside(folder)]) for arm in ARMS}
    for config in configs.values():
        run(config)
    return {arm: left(config) for arm, config in configs.items()}


@pytest.fixture
def grid(command, tmp_path):
    """Type a grid, its files in a folder of the test."""

    def run(launcher: str, *words: str) -> subprocess.CompletedProcess[str]:
        more = [*LAUNCHERS[launcher], *PLAIN, *inside(tmp_path), f"hydra.sweep.dir={tmp_path / 'multirun'}"]
        return command("hypotheses.run", "-m", *more, *words)

    return run


def made(folder: Path, arm: str, seed: int = 0) -> Any:
    return compose([f"backbone={arm}", f"seed={seed}", *PLAIN, *inside(folder)])


@pytest.mark.parametrize(
    "launcher", ["basic", *(pytest.param(n, marks=pytest.mark.slow) for n in ("joblib", "submitit_local"))]
)
def test_a_grid_leaves_the_records_of_single_runs(launcher, grid, single, tmp_path):
    done = grid(launcher, f"backbone={','.join(ARMS)}")
    assert done.returncode == 0, done.stdout + done.stderr
    for arm in ARMS:
        config = made(tmp_path, arm)
        same(left(config), single[arm])
        typed = record.read(record.path(config))["provenance"]["command"]
        assert typed.startswith("python -m hypotheses.run scale=smoke ") and typed.endswith(f" backbone={arm}")


@pytest.mark.parametrize(
    "launcher", ["basic", *(pytest.param(n, marks=pytest.mark.slow) for n in ("joblib", "submitit_local"))]
)
def test_a_mistake_in_one_run_is_one_line_and_the_others_go_on(launcher, grid, tmp_path):
    done = grid(launcher, f"backbone={ARMS[1]}", "recipe.batch_size=0,8", "tag=t")
    assert done.returncode == 2 and "Traceback" not in done.stdout + done.stderr, done.stderr
    assert done.stderr.splitlines()[-1] == "error: recipe.batch_size=0: give a number from 1"
    assert any("recipe.batch_size=0" in line for line in done.stderr.splitlines()[:-1])  # which run it was
    (found,) = (tmp_path / "results/records").rglob("*.json")
    assert record.read(found)["config"]["recipe"]["batch_size"] == 8


def test_a_word_that_is_no_option_begins_nothing(grid, tmp_path):
    done = grid("basic", f"backbone={ARMS[0]},mambaout_ato")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: no backbone 'mambaout_ato'; did you mean mambaout_atto?")
    assert not list(tmp_path.rglob("seed_0.json"))


@pytest.mark.slow
def test_a_run_of_several_processes_in_a_grid(grid, tmp_path):
    """torchrun makes it, and the grid goes on after it."""
    done = grid("basic", f"backbone={','.join(ARMS)}", *TWO)
    assert done.returncode == 0, done.stdout + done.stderr
    found = [record.read(file) for file in (tmp_path / "results/records").rglob("*.json")]
    assert [r["provenance"]["attempts"][0]["processes"] for r in found] == [2, 2]
