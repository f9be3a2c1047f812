"""On a GPU a killed run goes on from its checkpoint. Skipped where there is none."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from hypotheses import checkpoint, record
from hypotheses.config import Config, compose
from test_resume import RUNS, left, same, went_on

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def asked(task: str, folder: Path, data: Path) -> list[str]:
    hardware = ["hardware=gpu", "hardware.workers=2", "hardware.checkpoint_seconds=0"]
    places = [f"paths.data={data}", f"paths.outputs={folder / 'outputs'}", f"paths.results={folder / 'results'}"]
    return [f"task={task}", *hardware, *RUNS[task], *places]


def start(words: list[str], log: Path) -> subprocess.Popen[bytes]:
    with open(log, "a") as output:
        command = [sys.executable, "-m", "hypotheses.run", *words]
        return subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)


def kill_at(step: int, process: subprocess.Popen[bytes], config: Config) -> None:
    """End all of a run once the checkpoint of that step is written."""
    folder = Path(config["paths"]["outputs"], record.address(config), "checkpoints")
    while process.poll() is None and not any(entry["step"] >= step for entry in checkpoint.listed(folder)):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def gap(a: dict[str, Any], b: dict[str, Any]) -> float:
    """The largest difference between the weights that two runs ended with."""
    return max((a["weights"][name].float() - b["weights"][name].float()).abs().max().item() for name in a["weights"])


@pytest.mark.parametrize("task", RUNS)
def test_a_killed_run_ends_where_one_does_that_was_not(task, tmp_path):
    """With the same bits, where two whole runs have the same; else as near to them as they are to each other."""
    found = []
    for name, kills in (("whole", []), ("again", []), ("killed", [4, 8])):
        words = asked(task, tmp_path / name, tmp_path / "data")
        config, log = compose(words), tmp_path / f"{name}.txt"
        for step in kills:
            kill_at(step, start(words, log), config)
        assert start(words, log).wait(timeout=300) == 0, log.read_text()
        found.append(left(config))
        assert len(went_on(record.read(record.path(config)))) == len(kills)
    whole, again, killed = found
    most, seen = gap(whole, again), gap(whole, killed)
    print(f"{task}: two whole runs differ by {most:.3g}, one that was killed from a whole one by {seen:.3g}")
    if most == 0:
        same(whole, killed)
    assert seen <= 10 * most
    assert [row["step"] for row in killed["rows"]] == [row["step"] for row in whole["rows"]]
