"""The examples of docs/extend.md: each is copied over a copy of the project, as its reader would, and run there."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hypotheses import record
from hypotheses.config import ROOT

EXTENSIONS = Path(__file__).parent / "extensions"
SMOKE = ("scale=smoke", "hardware=cpu", "hardware.threads=1")


class Project:
    """A copy of the project with an extension."""

    def __init__(self, root: Path, extension: str):
        self.root = root
        for name in ("src", "conf", "experiments", "tests"):
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "extensions"))
        for name in ("Makefile", "pyproject.toml", "requirements.lock"):
            shutil.copy(ROOT / name, root)
        shutil.copytree(EXTENSIONS / extension, root, dirs_exist_ok=True)
        if (patch := EXTENSIONS / f"{extension}.patch").exists():
            subprocess.run(["git", "apply", str(patch)], cwd=root, check=True)

    def type(self, *words: str) -> str:
        """What `python -m <words>` prints, in the copy and by its code."""
        environment = {**os.environ, "PYTHONPATH": str(self.root / "src"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-m", *words],
            cwd=self.root,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def record(self, address: str) -> record.Record:
        return record.read(self.root / "results" / "records" / f"{address}.json")


@pytest.fixture
def project(tmp_path, request) -> Project:
    return Project(tmp_path, request.param)


@pytest.mark.slow
@pytest.mark.parametrize("project", ["backbone"], indirect=True)
def test_a_new_backbone_trains_on_classification(project):
    project.type("hypotheses.run", "task=imagenet", "backbone=poolformer_atto", *SMOKE)
    stored = project.record("smoke/imagenet/poolformer_atto/seed_0")
    assert stored["config"]["backbone"]["family"] == "poolformer" and stored["metrics"]["val_images"] == 8
    assert stored["cost"]["macs"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("project", ["backbone"], indirect=True)
def test_a_new_backbone_trains_on_detection_and_segmentation_and_passes_the_tests_of_all_backbones(project):
    for task, metric in (("coco", "box_ap_percent"), ("ade20k", "miou_percent")):
        project.type("hypotheses.run", f"task={task}", "backbone=poolformer_atto", *SMOKE)
        assert 0 <= project.record(f"smoke/{task}/poolformer_atto/seed_0")["metrics"][metric] <= 100
    shown = project.type("hypotheses.cost", "task=imagenet", "backbone=poolformer_atto", "--arms")
    assert "poolformer_atto_identity, with head" in shown
    files = ("backbones", "conf", "dense", "cost", "coco_ade20k", "imagenet")
    shown = project.type(
        *("pytest", "-n", "0", "-q", "-k", "poolformer", "-m", "", *(f"tests/test_{name}.py" for name in files))
    )
    assert int(shown.split(" passed")[0].split()[-1]) >= 18  # the exit code says that none failed


@pytest.mark.parametrize("project", ["task"], indirect=True)
def test_a_new_task_leaves_a_record(project):
    project.type("hypotheses.run", "task=pairs", "backbone=mambaout_atto", *SMOKE)
    stored = project.record("smoke/pairs/mambaout_atto/seed_0")
    assert stored["metrics"]["val_images"] == 10 and 0 <= stored["metrics"]["top1_percent"] <= 100
    drawn = list((project.root / "data/demo").glob("pairs_*/seed_0/val/*/*.png"))
    assert sorted(file.parent.name for file in drawn) == ["left"] * 5 + ["right"] * 5


@pytest.mark.slow
@pytest.mark.parametrize("project", ["task"], indirect=True)
def test_a_new_task_can_be_learnt_by_a_network_that_mixes_tokens_alone(project):
    found = {}
    for name in ("mambaout_atto", "mambaout_atto_identity"):
        project.type("hypotheses.run", "task=pairs", f"backbone={name}", "hardware=cpu", "hardware.threads=1")
        found[name] = project.record(f"demo/pairs/{name}/seed_0")["metrics"]["top1_percent"]
    assert found["mambaout_atto"] > 60 > found["mambaout_atto_identity"], found


@pytest.mark.parametrize("project", ["hypothesis"], indirect=True)
def test_a_new_hypothesis_is_judged_from_records(project, make_records):
    values = {
        "mambaout_atto": [90.0, 91.0, 90.5, 89.5, 90.2],
        "mambaout_atto_k13": [90.3, 90.8, 90.9, 89.6, 90.0],
        "mambaout_atto_identity": [61.0, 62.0, 60.0, 63.0, 61.5],
    }
    rule = record.sha256(project.root / "experiments/hypothesis_9.yaml")
    for number in (2, 3, 4):  # whose figures would be drawn too
        (project.root / f"experiments/hypothesis_{number}.yaml").unlink()
    for made in make_records(values).values():
        made["provenance"]["registered"]["hypothesis_9"] = rule
        record.write(project.root / "results" / "records" / f"{made['address']}.json", made)
    shown = project.type("hypotheses.report", "9")
    assert "Hypothesis 9 at demo scale: REFUTED" in shown and "n = 5" in shown, shown
    assert "exploratory" not in shown.lower()
    assert json.loads(project.type("hypotheses.status", "9", "--json"))
