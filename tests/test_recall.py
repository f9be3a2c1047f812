"""The positive control: strips on which a memory is needed, and the gate that asks who has one."""

import copy
import dataclasses
import re

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import composed
from hypotheses import data, record, verdict
from hypotheses.config import CONF, compose
from hypotheses.data import digits, strips
from hypotheses.errors import UserError
from hypotheses.run import run
from hypotheses.tasks.recall import Recall

SETTINGS = (30, 12, 16, 6, 2)  # train_images, val_images, cell, cells, marked
SCALES = [p.stem.split("_")[1] for p in (CONF / "recipe").glob("recall_*.yaml") if "smoke" not in p.stem]


# ---- the data --------------------------------------------------------------------------------------------------------


def test_one_digit_of_the_first_cells_is_marked_and_is_the_class():
    found = list(strips.strips(3, *SETTINGS))
    assert [path.parts[0] for path, _ in found] == ["train"] * 30 + ["val"] * 12
    places = set()
    for _, pixels in found:
        assert pixels.shape == (16, 96) and pixels.dtype == np.uint8
        dark = [cell.mean() > 128 for cell in np.split(pixels, 6, axis=1)]  # ink on a light ground
        assert sum(dark) == 1 and dark.index(True) < 2
        places.add(dark.index(True))
    assert places == {0, 1}


def test_the_class_is_that_of_the_marked_digit(monkeypatch):
    """With each digit drawn as its number, the marked cell says the class."""
    from sklearn.datasets import load_digits

    names = {digit.tobytes(): int(t) for digit, t in zip(load_digits().images / 16, load_digits().target, strict=True)}
    monkeypatch.setattr(
        strips, "draw", lambda digit, side, dark, rng: np.full((side, side), 0.05 * names[digit.tobytes()] + 0.5 * dark)
    )
    monkeypatch.setattr(strips, "NOISE", 0.0)
    for path, pixels in strips.strips(3, *SETTINGS):
        cells = [cell.mean() / 255 for cell in np.split(pixels, 6, axis=1)]
        (marked,) = (c for c in cells if c > 0.49)
        assert round((marked - 0.5) / 0.05) == int(path.parts[1])


def test_a_digit_is_in_one_split_only_that_of_the_classification_demo(monkeypatch):
    drawn: dict[str, set[bytes]] = {"train": set(), "val": set()}
    seen: list[bytes] = []
    monkeypatch.setattr(strips, "draw", lambda digit, side, *_: seen.append(digit.tobytes()) or np.zeros((side, side)))
    for path, _ in strips.strips(3, 200, 200, 16, 6, 2):
        drawn[path.parts[0]] |= set(seen)
        seen.clear()
    assert drawn["train"] and drawn["val"] and not drawn["train"] & drawn["val"]
    from sklearn.datasets import load_digits

    of_demo = {image.tobytes() for image in load_digits().images[digits.split(3)["val"]] / 16}
    assert drawn["val"] <= of_demo


def test_a_seed_gives_the_same_files_and_another_one_others(tmp_path):
    first = strips.prepare(tmp_path / "a", 3, *SETTINGS)
    assert first == strips.prepare(tmp_path / "b", 3, *SETTINGS) == strips.prepare(tmp_path / "a", 3, *SETTINGS)
    assert first != strips.prepare(tmp_path / "c", 4, *SETTINGS)
    (file, *_) = sorted((tmp_path / "a" / "train").rglob("*.png"))
    with Image.open(file) as image:
        assert image.size == (96, 16)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("recipe.data.marked=10", "recipe.data.marked=10: give at most cells=9"),
        ("recipe.data.cell=8", r"recipe.image_size=\[16, 144\]: 9 cells of 8 pixels are drawn"),
        ("recipe.data.cells=0", "recipe.data.cells=0: give a whole number from 1"),
        ("recipe.data.train_images=many", "recipe.data.train_images=many: give a whole number from 10"),
        ("recipe.data.marked=true", "recipe.data.marked=True: give a whole number from 1"),
        ("recipe.image_size=16", "recipe.image_size"),
        ("recipe.num_classes=7", "recipe.num_classes=7: strips are of the 10 digits"),
        ("recipe.mix={mixup_alpha: 0.8}", "recipe.mix and recipe.augment: strips are taken as they are drawn"),
        ("recipe.data.source=digits", "recipe.data.source=digits: choose one of strips for task=recall"),
    ],
)
def test_strips_that_cannot_be_drawn_are_an_error(override, message):
    with pytest.raises(UserError, match=message):
        compose(["task=recall", override])


# ---- who can solve it ------------------------------------------------------------------------------------------------


def reach(arm: str, scale: str) -> np.ndarray:
    """Which columns of a strip the last token's logits depend on, by the gradient at random weights."""
    config = compose(["task=recall", f"backbone={arm}", f"scale={scale}"])
    module = Recall(config, steps_per_epoch=1).double()
    height, width = config["recipe"]["image_size"]
    image = torch.randn(1, 3, height, width, dtype=torch.float64, requires_grad=True)
    module.logits(image).square().sum().backward()
    return (image.grad != 0).any(dim=(0, 1, 2)).numpy()


@pytest.mark.parametrize("scale", [pytest.param(s, marks=[pytest.mark.slow] * (s == "paper")) for s in SCALES])
def test_convolutions_do_not_reach_the_mark_and_a_scan_does(hypothesis, scale):
    config = compose(["task=recall", f"scale={scale}"])
    marked = config["recipe"]["data"]["cell"] * config["recipe"]["data"]["marked"]
    arms = hypothesis.scales[scale]
    for arm in hypothesis.memory_arms(scale):
        seen = reach(arm, scale)
        assert seen[-1]
        assert seen[:marked].all() if arm in arms.treatments else not seen[:marked].any(), arm
    assert (
        reach(hypothesis.scales["demo"].control, "demo").nonzero()[0].min() == 89
    )  # as conf/recipe/recall_demo.yaml says


def test_the_last_token_is_judged_and_every_token_is_taught():
    config = composed("recall", "mambaout_atto_ssm")
    module = Recall(config, steps_per_epoch=1)
    images, target = torch.randn(3, 3, 16, 144), torch.tensor([1, 2, 3])
    tokens = module.model.backbone(images)[-1]
    assert tokens.shape == (3, 48, 4, 36)
    one_by_one = [[module.model.head([tokens[:, :, i : i + 1, j : j + 1]]) for j in range(36)] for i in range(4)]
    torch.testing.assert_close(module.logits(images), one_by_one[3][35])
    losses = [torch.nn.functional.cross_entropy(logits, target) for row in one_by_one for logits in row]
    torch.testing.assert_close(module.loss(images, target, 0.0), torch.stack(losses).mean())


@pytest.mark.parametrize("backbone", ["mambaout_atto_ssm_cross", "mambaout_femto_ssm", "vit_tiny_causal"])
def test_a_smoke_run_leaves_a_record(backbone, paths, tmp_path, check_kept):
    config = compose(["task=recall", "scale=smoke", f"backbone={backbone}", "hardware=cpu", *paths])
    made = run(config)
    assert made and set(made["metrics"]) == {"top1_percent", "top5_percent", "val_loss", "val_images"}
    check_kept(made, tmp_path / "results")
    assert record.find(config, data.prepare(config).fingerprint) == made


@pytest.mark.slow
def test_the_ssm_learns_it(paths):
    """On a seed that no verdict uses. That its sham does not, every sweep shows."""
    made = run(compose(["task=recall", "backbone=mambaout_atto_ssm", "seed=103", "hardware=cpu", *paths]))
    assert made and made["metrics"]["top1_percent"] > 60


# ---- the gate --------------------------------------------------------------------------------------------------------

BED = {
    "mambaout_atto": [90.1, 91.0, 89.6, 90.4, 90.9],
    "mambaout_atto_ssm": [90.0, 91.3, 89.9, 90.1, 91.0],
    "mambaout_atto_identity": [40.0, 41.0, 39.0, 42.0, 38.0],
}


@pytest.fixture
def gate(hypothesis, make_records, memory):
    """The gate and the verdict, with the runs of the positive control changed by `edit`."""

    def judge(edit=lambda runs: None, unregistered=()):
        runs = copy.deepcopy(memory["recall"])
        edit(runs)
        judged = verdict.judge(
            hypothesis, "demo", {"imagenet": make_records(BED), "recall": runs}, {"recall": unregistered}
        )
        (found,) = (g for g in judged.beds[0].gates if g.name == "positive control")
        return found, judged

    return judge


def test_a_memory_that_shows_opens_it_with_its_numbers(gate):
    found, judged = gate()
    assert found.passed and judged.outcome == verdict.SUPPORTED
    assert found.detail == (
        "on recall mambaout_atto_ssm 87.7 (85.0 to 90.0), at least 60 needed; without memory mambaout_atto 10.0 (9.5 to 10.5), "
        "mambaout_atto_sham 10.0 (9.0 to 11.0), at most 20 allowed (top-1 at the last token in percent, means and ranges, n = 3)"
    )


@pytest.mark.parametrize(
    ("arm", "value"), [("mambaout_atto_ssm", 20.0), ("mambaout_atto_sham", 80.0), ("mambaout_atto", 60.0)]
)
def test_an_ssm_without_memory_or_another_arm_with_one_closes_it(gate, arm, value):
    def edit(runs):
        for seed in range(3):
            runs[arm, seed]["metrics"]["top1_percent"] = value

    found, judged = gate(edit)
    assert not found.passed and judged.outcome == verdict.INCONCLUSIVE
    assert judged.reason.startswith("gate not passed: positive control; without it: supported")


def test_runs_that_are_not_there_close_it(gate):
    found, _ = gate(lambda runs: runs.pop(("mambaout_atto_sham", 2)))
    assert not found.passed and found.detail == "8 of the 9 runs of recall are recorded"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (("data_fingerprint",), "other", "data of demo/recall/mambaout_atto_ssm/seed_1"),
        (("provenance", "code"), "other", "code of demo/recall/mambaout_atto_ssm/seed_1"),
        (("config", "recipe", "epochs"), 50, r"recipe.epochs \(6 against 50"),
    ],
)
def test_runs_that_are_not_alike_close_it(gate, key, value, said):
    def edit(runs):
        *way, last = key
        found = runs["mambaout_atto_ssm", 1]
        for name in way:
            found = found[name]
        found[last] = value

    found, _ = gate(edit)
    assert not found.passed and re.search(said, found.detail)


@pytest.mark.parametrize(
    ("key", "value"),
    [("code", "old"), ("device", "1 x GPU"), ("packages", {"torch": "1"}), ("kernels", {"scan": "plain"})],
)
def test_it_vouches_only_for_runs_of_the_same_code_and_software(gate, key, value):
    def edit(runs):
        for found in runs.values():
            found["provenance"][key] = value

    found, judged = gate(edit)
    assert not found.passed and judged.outcome == verdict.INCONCLUSIVE
    assert (
        f"the runs of recall differ from demo/imagenet/mambaout_atto/seed_0 in {key}: delete their records"
        in found.detail
    )


def test_its_seeds_choose_no_look(hypothesis, make_records, memory):
    longer = make_records({"mambaout_atto": [10.0] * 8}, "recall")
    judged = verdict.judge(hypothesis, "demo", {"imagenet": make_records(BED), "recall": memory["recall"] | longer})
    assert judged.outcome == verdict.SUPPORTED and judged.seeds == (0, 1, 2, 3, 4)


def test_runs_that_are_not_the_registered_ones_close_it(gate):
    found, _ = gate(unregistered=["recipe.epochs was 50, registered is 5"])
    assert not found.passed and "recipe.epochs was 50, registered is 5" in found.detail


def test_a_hypothesis_without_one_has_no_such_gate(hypothesis, make_records):
    without = dataclasses.replace(hypothesis, positive_control=None)
    judged = verdict.judge(without, "demo", {"imagenet": make_records(BED)})
    assert judged.outcome == verdict.SUPPORTED
    assert "positive control" not in [g.name for g in judged.beds[0].gates]
