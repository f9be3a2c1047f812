"""The demo's scenes are deterministic, in the layouts that mmdet and mmsegmentation read, and fair; real layouts are checked."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from hypotheses import data
from hypotheses.config import compose
from hypotheses.data import digits, layouts, scenes
from hypotheses.errors import UserError
from hypotheses.tasks import openmmlab

FEW = (6, 3)  # images


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "made"
    scenes.prepare(folder, 0, *FEW)
    return folder


def test_they_are_a_function_of_the_seed(root, tmp_path):
    again, other = (scenes.prepare(tmp_path / name, seed, *FEW) for name, seed in (("a", 0), ("b", 1)))
    assert again == scenes.prepare(root, 0, *FEW) != other
    for file in sorted(p.relative_to(root) for p in root.rglob("*.*") if p.name != "manifest.json"):
        assert (root / file).read_bytes() == (tmp_path / "a" / file).read_bytes()
    assert scenes.version(*FEW) != scenes.version(6, 4)


def test_what_was_changed_is_made_again(root, tmp_path, capsys):
    fingerprint = scenes.prepare(tmp_path / "a", 0, *FEW)
    next((tmp_path / "a/ade20k/annotations/validation").iterdir()).unlink()
    assert scenes.prepare(tmp_path / "a", 0, *FEW) == fingerprint
    assert "making it again" in capsys.readouterr().err
    assert len(list((tmp_path / "a/ade20k/annotations/validation").iterdir())) == FEW[1]


def test_no_digit_and_no_background_is_in_both_splits(monkeypatch):
    members = digits.split(0)
    assert not set(members["train"]) & set(members["val"])
    assert len(members["train"]) + len(members["val"]) == 1797
    # the classification demo of the same seed trains on no digit that is judged here
    trained = {int(path.stem.split("_")[0]) for path, _ in digits.images(0, 5, 3) if path.parts[0] == "train"}
    assert trained == set(members["train"])
    recipe = compose(["task=imagenet", "scale=demo"])["recipe"]["data"]
    assert (recipe["train_placements"], recipe["val_placements"]) == (5, 3)  # for which `split` is by default
    seen = {"train": set(), "val": set()}
    half = 640 // 2
    real = scenes.compose

    def spy(grey, labels, grounds, rng):
        assert all(ground.shape == (427, half, 3) for ground in grounds)
        seen["val" if spy.number >= FEW[0] else "train"].update(float(ground.sum()) for ground in grounds)
        spy.number += 1
        return real(grey, labels, grounds, rng)

    spy.number = 0  # type: ignore[attr-defined]
    monkeypatch.setattr(scenes, "compose", spy)
    assert [split for split, _ in scenes.scenes(0, *FEW)] == ["train"] * FEW[0] + ["val"] * FEW[1]
    assert len(seen["train"]) == len(seen["val"]) == 2 and not seen["train"] & seen["val"]


def test_both_layouts_say_the_same_and_polygons_and_rle_are_the_masks(root):
    made = {split: [s for name, s in scenes.scenes(0, *FEW) if name == split] for split in scenes.SPLITS}
    kinds = set()
    for split, (folder, ade, stem) in scenes.SPLITS.items():
        coco = COCO(str(root / f"coco/annotations/instances_{folder}.json"))
        assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(scenes.CLASSES)
        for number, scene in enumerate(made[split], 1):
            segments = np.asarray(Image.open(root / f"ade20k/annotations/{ade}/{stem}_{number:08d}.png"))
            assert segments.dtype == np.uint8 and segments.shape == (scenes.SIDE, scenes.SIDE)
            assert ((segments == 0) == scene.edges).all()
            found = coco.loadAnns(coco.getAnnIds(number))
            assert [a["category_id"] - 1 for a in found] == scene.labels
            for a, mask in zip(found, scene.masks, strict=True):
                kinds.add(type(a["segmentation"]))
                drawn = coco.annToMask(a).astype(bool)
                assert (drawn & mask).sum() / (drawn | mask).sum() > 0.97
                assert (segments[mask] == a["category_id"] + 1).all() and a["area"] == mask.sum()
                left, top, width, height = a["bbox"]
                assert mask[top : top + height, left : left + width].sum() == mask.sum()
    assert kinds == {list, dict}


def test_mmdet_and_mmsegmentation_read_every_image_and_object(root):
    openmmlab.library("mmdet")
    openmmlab.library("mmseg")
    from mmdet.datasets import CocoDataset
    from mmseg.datasets import ADE20KDataset

    with openmmlab.quiet():
        coco = CocoDataset(
            data_root=str(root / "coco"),
            ann_file="annotations/instances_train2017.json",
            data_prefix={"img": "train2017/"},
            metainfo={"classes": scenes.CLASSES},
            filter_cfg={"filter_empty_gt": True, "min_size": 32},
        )
    listed = json.loads((root / "coco/annotations/instances_train2017.json").read_text())
    assert len(coco) == FEW[0]
    assert sum(len(coco.get_data_info(i)["instances"]) for i in range(len(coco))) == len(listed["annotations"])
    ade = ADE20KDataset(
        data_root=str(root / "ade20k"),
        data_prefix={"img_path": "images/validation", "seg_map_path": "annotations/validation"},
    )
    assert len(ade) == FEW[1] and all(Path(ade[i]["seg_map_path"]).exists() for i in range(len(ade)))


def test_digits_do_not_cover_each_other():
    for _, scene in scenes.scenes(3, 20, 0):
        assert scenes.DIGITS[0] - 2 <= len(scene.labels) <= scenes.DIGITS[1]
        assert scene.masks.sum(0).max() <= 1 and not (scene.masks.any(0) & scene.edges).any()
        assert all(mask.sum() > 15 for mask in scene.masks)


# ---- the real layouts ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["coco", "ade20k"])
def test_the_scenes_pass_the_check_of_the_real_layout_and_its_fingerprint_sees_changes(root, tmp_path, task):
    import shutil

    shutil.copytree(root / task, tmp_path / task)
    before = layouts.check(task, tmp_path / task, training=True)
    assert layouts.check(task, tmp_path / task, training=True) == before
    assert layouts.check(task, tmp_path / task, training=False) != before
    config = compose([f"task={task}", "scale=paper", "pretrained=none", f"paths.{task}={tmp_path / task}"])
    assert data.prepare(config).fingerprint == before
    file = next((tmp_path / task).rglob("*.jpg"))
    file.write_bytes(file.read_bytes() + b" ")
    assert layouts.check(task, tmp_path / task, training=True) != before


@pytest.mark.parametrize(
    ("task", "gone", "message"),
    [
        (
            "coco",
            "annotations/instances_train2017.json",
            r"no .*instances_train2017\.json: expected in .*paths\.coco=FOLDER",
        ),
        ("coco", "val2017", r"no .*val2017: expected"),
        ("coco", "train2017/*", r"train2017 has no \.jpg file"),
        ("ade20k", "annotations/training", r"no .*annotations/training: expected in .*paths\.ade20k=FOLDER"),
        (
            "ade20k",
            "annotations/training/ADE_train_00000002.png",
            r"1 names of the training split .*ADE_train_00000002",
        ),
        ("ade20k", "images/validation/*", r"images/validation has no \.jpg file"),
    ],
)
def test_what_is_missing_is_named(root, tmp_path, task, gone, message):
    import shutil

    shutil.copytree(root / task, tmp_path / task)
    for path in (tmp_path / task).glob(gone):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=message):
        data.prepare(compose([f"task={task}", "scale=paper", f"paths.{task}={tmp_path / task}"]))
