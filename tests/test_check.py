"""Every kind of broken data is found before training and named; good data pass; what was decoded once is not decoded again; files in
quarantine are left out in every arm."""

import contextlib
import copy
import dataclasses
import functools
import io
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from hypotheses import data, reproduce, tasks
from hypotheses.config import ROOT, compose
from hypotheses.data import __main__ as front
from hypotheses.data import layouts, preflight, quarantine, sources
from hypotheses.data.preflight import coco, files, imagenet, sets
from hypotheses.data.preflight.findings import KINDS, SHOWN, Finding, grouped
from hypotheses.errors import UserError
from hypotheses.run import run
from hypotheses.tasks import images, openmmlab

NAMES = (Path(layouts.__file__).parent / "coco_classes.txt").read_text().splitlines()
IDS = [n for n in range(1, 91) if n not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]  # of COCO's categories
SIZE = (64, 48)
TRAIN, VAL = "annotations/instances_train2017.json", "annotations/instances_val2017.json"
FIRST = {
    "imagenet": "train/n01440764/0.JPEG",
    "coco": "train2017/000000000001.jpg",
    "ade20k": "images/training/ADE_train_00000001.jpg",
}
MASK = "annotations/training/ADE_train_00000001.png"


# ---- good sets, in the real layouts ----------------------------------------------------------------------------------


def draw(rng: np.random.Generator, size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


def make_imagenet(root: Path) -> None:
    rng = np.random.default_rng(0)
    for split, number in (("train", 6), ("val", 3)):
        for name in ("n01440764", "n01443537"):
            (root / split / name).mkdir(parents=True)
            for i in range(number):
                draw(rng, (36, 40)).save(root / split / name / f"{i}.JPEG")


def make_coco(root: Path) -> None:
    rng = np.random.default_rng(1)
    (root / "annotations").mkdir(parents=True)
    categories = [{"id": id, "name": name} for id, name in zip(IDS, NAMES, strict=True)]
    for split, number, each in (("train", 10, 12), ("val", 6, 20)):
        (root / f"{split}2017").mkdir()
        content: dict[str, Any] = {"images": [], "annotations": [], "categories": categories}
        for i in range(1, number + 1):
            name = f"{i:012d}.jpg"
            draw(rng).save(root / f"{split}2017" / name)
            content["images"].append({"id": i, "file_name": name, "width": SIZE[0], "height": SIZE[1]})
            for j in range(each):
                x, y, w, h = 2 * j, j, 10, 12
                content["annotations"].append(
                    {
                        "id": len(content["annotations"]) + 1,
                        "image_id": i,
                        "category_id": IDS[j],
                        "bbox": [x, y, w, h],
                        "area": w * h,
                        "iscrowd": 0,
                        "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                    }
                )
        (root / f"annotations/instances_{split}2017.json").write_text(json.dumps(content))


def make_ade20k(root: Path) -> None:
    rng = np.random.default_rng(2)
    for split, name, number in (("training", "train", 8), ("validation", "val", 4)):
        for part in ("images", "annotations"):
            (root / part / split).mkdir(parents=True)
        for i in range(1, number + 1):
            draw(rng).save(root / f"images/{split}/ADE_{name}_{i:08d}.jpg")
            labels = np.resize(np.arange(151, dtype=np.uint8), (SIZE[1], SIZE[0]))
            Image.fromarray(labels).save(root / f"annotations/{split}/ADE_{name}_{i:08d}.png")


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("good")
    make_imagenet(root / "imagenet")
    make_coco(root / "coco")
    make_ade20k(root / "ade20k")
    return root


@pytest.fixture
def copied(good, tmp_path) -> Callable[[str], Path]:
    """A set of its own for a test."""

    def copy(task: str) -> Path:
        shutil.copytree(good / task, tmp_path / "sets" / task)
        return tmp_path / "sets" / task

    return copy


def words(task: str, root: Path) -> list[str]:
    more = ["recipe.num_classes=2"] if task == "imagenet" else []
    return [f"task={task}", "scale=paper", *more, f"paths.{task}={root}"]


@functools.cache
def composed(*overrides: str) -> dict:
    return compose(list(overrides))


def config_of(task: str, root: Path, paths: list[str], *more: str) -> dict:
    """The config of a set, without its being composed for each test again."""
    config = copy.deepcopy(composed(*words(task, Path("/data")), *more))
    config["paths"] |= {task: str(root)} | dict(path.removeprefix("paths.").split("=") for path in paths)
    return config


def found(task: str, root: Path, paths: list[str], *more: str) -> preflight.Result:
    return preflight.check(config_of(task, root, paths, *more))


def edit(root: Path, change: Callable[[dict], object], file: str = TRAIN) -> None:
    content = json.loads((root / file).read_text())
    change(content)
    (root / file).write_text(json.dumps(content))


def first(content: dict) -> dict:
    return content["annotations"][0]


@pytest.mark.parametrize("task", ["imagenet", "coco", "ade20k"])
def test_a_good_set_passes(task, good, paths):
    result = found(task, good / task, paths)
    assert {f.kind for f in result.findings} == {"count"} and not result.errors  # they are small
    assert result.decoded == {"imagenet": 18, "coco": 16, "ade20k": 24}[task]


@pytest.mark.parametrize("task", ["coco", "ade20k", "imagenet"])
def test_the_demo_s_sets_pass_without_a_word(task, paths):
    few = ["recipe.data.train_images=30", "recipe.data.val_images=20"]
    few = ["recipe.data.train_placements=1", "recipe.data.val_placements=1"] if task == "imagenet" else few
    result = preflight.check(compose([f"task={task}", "scale=demo", *few, *paths]))
    odd = {f.kind for f in result.findings}
    assert odd <= {"absent_class"} and result.decoded  # so few scenes may lack a digit


# ---- broken ones -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    task: str
    kind: str
    file: str
    text: str
    also: frozenset[str]
    change: Callable[[Path], object]


CASES: dict[str, Case] = {}


def case(task: str, kind: str, file: str, text: str, *also: str):
    """A way to break a good set, and the one kind of finding that it leads to (`also`: others that follow from it)."""

    def register(change):
        name = change.__name__.strip("_").replace("_", " ") + f" ({task})"
        assert name not in CASES
        CASES[name] = Case(task, kind, file, text, frozenset(also), change)
        return change

    return register


def each(kind: str, text: str, tasks: tuple[str, ...] = ("imagenet", "coco", "ade20k"), also: dict | None = None):
    """A case of an image of several sets."""

    def register(change):
        for task in tasks:
            one = lambda root, task=task: change(root / FIRST[task])  # noqa: E731
            one.__name__ = change.__name__
            case(task, kind, FIRST[task], text, *(also or {}).get(task, ()))(one)
        return change

    return register


@each("empty_file", "has no bytes; copy it again, or quarantine")
def an_image_of_no_bytes(file):
    file.write_bytes(b"")


@each("truncated", "truncated")
def a_truncated_image(file):
    file.write_bytes(file.read_bytes()[:-400])


@each("text", "is a web page, no image; download it again")
def a_web_page(file):
    file.write_text("<!DOCTYPE html><html><body>404</body></html>")


@each("text", "is a pointer of Git LFS", ("imagenet",))
def a_pointer(file):
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")


@each("text", "is text, no image", ("coco",))
def a_text(file):
    file.write_text("quota exceeded")


@each("undecodable", "in no format of images that is known")
def a_file_of_noise(file):
    file.write_bytes(np.random.default_rng(0).integers(128, 255, 3000, dtype=np.uint8).tobytes())


@each("undecodable", "", ("imagenet",))
def a_damaged_png(file):
    content = io.BytesIO()
    draw(np.random.default_rng(0)).save(content, "PNG")
    damaged = bytearray(content.getvalue())
    damaged[60:90] = bytes(30)
    file.write_bytes(damaged)


@each("unreadable", "No such file")
def a_link_to_nowhere(file):
    file.unlink()
    file.symlink_to("/nowhere/x.jpg")


@each("bomb", "exceeds limit", ("imagenet",))
def a_decompression_bomb(file):
    Image.new("1", (20_000, 10_000)).save(file, "PNG")


@each("huge", "has 9600 x 9600 pixels", ("imagenet",), {"imagenet": ("misnamed",)})
def an_image_of_92_megapixels(file):
    Image.new("1", (9600, 9600)).save(file, "PNG")


@each("tiny", "has 36 x 4 pixels, fewer than 8", ("imagenet",))
def a_sliver(file):
    Image.new("RGB", (36, 4)).save(file)


@each("misnamed", "is PNG, not JPEG as its name says")
def a_png_with_the_name_of_a_jpeg(file):
    Image.new("RGB", SIZE).save(file, "PNG")


@each("format", "is GIF, which OpenCV does not read", ("coco", "ade20k"), {t: ("palette",) for t in FIRST})
def a_gif(file):
    Image.new("L", SIZE).save(file, "GIF")


@each("cmyk", "is CMYK; nothing; it is converted on reading")
def a_cmyk_image(file):
    Image.new("CMYK", SIZE, (9, 9, 9, 9)).save(file)


@each("palette", "has a palette", also={t: ("misnamed",) for t in FIRST})
def an_image_with_a_palette(file):
    Image.new("P", SIZE).save(file, "PNG")


@each("alpha", "has transparency", also={t: ("misnamed",) for t in FIRST})
def an_image_with_transparency(file):
    Image.new("RGBA", SIZE).save(file, "PNG")


@each("deep", "more than 8 bits a channel", also={t: ("misnamed",) for t in FIRST})
def an_image_of_16_bits(file):
    Image.fromarray(np.zeros(SIZE[::-1], np.uint16)).save(file, "PNG")


def turned(file: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[files.ORIENTATION] = orientation
    Image.new("RGB", SIZE).save(file, exif=exif)


@each("exif", "has EXIF orientation 3")
def an_image_upside_down(file):
    turned(file, 3)


@each("bad_exif", "EXIF data that cannot be read")
def an_orientation_of_99(file):
    turned(file, 99)


@case("imagenet", "missing", "val", r"paths\.imagenet=FOLDER says where")
def _no_val(root):
    shutil.rmtree(root / "val")


@case("imagenet", "class_sets", "val/n02000000", "class of the other split only", "class_count")
def _a_class_in_train_only(root):
    (root / "train/n02000000").mkdir()
    draw(np.random.default_rng(9)).save(root / "train/n02000000/0.JPEG")


@case("imagenet", "empty_class", "val/n01443537", "has no image")
def _an_empty_class(root):
    for file in (root / "val/n01443537").iterdir():
        file.unlink()


@case("imagenet", "nested", "train/n01440764/images", "move its images up", "empty_class")
def _images_one_folder_too_deep(root):
    (root / "train/n01440764/images").mkdir()
    for file in list((root / "train/n01440764").glob("*.JPEG")):
        file.rename(file.parent / "images" / file.name)


@case("imagenet", "extra_file", "train/n01440764/.DS_Store", "is no image of a class")
def _an_extra_file(root):
    (root / "train/n01440764/.DS_Store").write_text("x")


@case("imagenet", "extra_file", "val/0.JPEG", "is no image of a class")
def _an_image_beside_the_classes(root):
    draw(np.random.default_rng(5)).save(root / "val/0.JPEG")


@case("imagenet", "overlap_many", "val/n01440764/0.JPEG", r"has the bytes of train/n01440764/0\.JPEG")
def _val_copied_from_train(root):
    shutil.copy(root / FIRST["imagenet"], root / "val/n01440764/0.JPEG")


@case("coco", "overlap_many", "val2017/000000000001.jpg", r"has the bytes of train2017/")
def _an_image_in_both_splits(root):
    shutil.copy(root / FIRST["coco"], root / "val2017/000000000001.jpg")


@case("ade20k", "overlap_many", "images/validation/ADE_val_00000001.jpg", r"has the bytes of images/training/")
def _an_image_in_both(root):
    shutil.copy(root / FIRST["ade20k"], root / "images/validation/ADE_val_00000001.jpg")


@case("coco", "missing", "train2017", "there is no such folder")
def _no_images(root):
    shutil.rmtree(root / "train2017")


@case("coco", "missing", TRAIN, "there is no such file")
def _no_annotation_file(root):
    (root / TRAIN).unlink()


@case("coco", "empty_folder", "train2017", "has no .jpg file", "no_file")
def _an_empty_folder(root):
    for file in (root / "train2017").iterdir():
        file.unlink()


@case("coco", "extra_file", "train2017/x.JPG", "is no .jpg file of this folder")
def _another_suffix(root):
    draw(np.random.default_rng(5)).save(root / "train2017/x.JPG")


@case("coco", "json", TRAIN, "cannot be read as JSON")
def _a_truncated_json(root):
    (root / TRAIN).write_bytes((root / TRAIN).read_bytes()[:5000])


@case("coco", "json", TRAIN, "is not a JSON object with the lists")
def _a_json_of_a_list(root):
    (root / TRAIN).write_text("[1, 2]")


@case("coco", "json", TRAIN, "is not a JSON object with the lists")
def _no_categories(root):
    edit(root, lambda c: c.pop("categories"))


@case("coco", "no_annotations", VAL, r"image_info_test\*\.json has no annotations")
def _the_test_set(root):
    edit(root, lambda c: c.pop("annotations"), VAL)


@case("coco", "image_keys", TRAIN, "image 1 has no proper width", "orphan", "no_entry")
def _an_image_without_width(root):
    edit(root, lambda c: c["images"][0].pop("width"))


@case("coco", "image_twice", TRAIN, "image id 1 is there 2 times", "orphan")
def _an_image_id_twice(root):
    edit(root, lambda c: c["images"][1].update(id=1))


@case("coco", "file_twice", TRAIN, "belongs to 2 images", "no_entry")
def _a_file_of_two_images(root):
    edit(root, lambda c: c["images"][1].update(file_name=c["images"][0]["file_name"]))


@case("coco", "annotation_twice", TRAIN, "annotation id 1 is there 2 times")
def _an_annotation_id_twice(root):
    edit(root, lambda c: c["annotations"][1].update(id=1))


@case("coco", "orphan", TRAIN, "annotation 1 is of image 999, which is not listed")
def _an_annotation_without_image(root):
    edit(root, lambda c: first(c).update(image_id=999))


@case("coco", "no_file", FIRST["coco"], "is listed in .* and not there; copy the image there, or quarantine")
def _an_image_without_file(root):
    (root / FIRST["coco"]).unlink()


@case("coco", "no_entry", "train2017/x.jpg", "is not listed")
def _a_file_without_entry(root):
    draw(np.random.default_rng(5)).save(root / "train2017/x.jpg")


@case("coco", "size", FIRST["coco"], "has 32 x 33 pixels, 64 x 48 in annotations")
def _another_size(root):
    draw(np.random.default_rng(5), (32, 33)).save(root / FIRST["coco"])


@case("coco", "small", FIRST["coco"], "has 64 x 20 pixels, fewer than 32", "size")
def _a_small_image(root):
    draw(np.random.default_rng(5), (64, 20)).save(root / FIRST["coco"])


@case("coco", "size", FIRST["coco"], "has 48 x 64 pixels as EXIF turns it, 64 x 48", "exif")
def _an_image_on_its_side(root):
    turned(root / FIRST["coco"], 6)


@case("coco", "category_twice", TRAIN, "category 1 is there 2 times")
def _a_category_id_twice(root):
    edit(root, lambda c: c["categories"][1].update(id=1), TRAIN)
    edit(root, lambda c: [a.update(category_id=1) for a in c["annotations"] if a["category_id"] == 2])


@case("coco", "category_missing", TRAIN, "lacks 1 of 80 categories: toothbrush")
def _a_category_missing(root):
    edit(root, lambda c: c["categories"].pop())


@case("coco", "category_unknown", TRAIN, "1 categories that are no classes: Person", "category_missing")
def _a_category_of_another_name(root):
    edit(root, lambda c: c["categories"][0].update(name="Person"))


@case("coco", "category_order", TRAIN, "has bicycle where person is due")
def _categories_in_another_order(root):
    edit(root, lambda c: c["categories"].insert(0, c["categories"].pop(1)))


@case("coco", "no_category", TRAIN, "is of category 12, which is not listed")
def _an_unknown_category(root):
    edit(root, lambda c: first(c).update(category_id=12))


@case("coco", "annotation_keys", TRAIN, "has no proper bbox, area, iscrowd, segmentation")
def _an_annotation_without_keys(root):
    edit(root, lambda c: [first(c).pop(key) for key in ("bbox", "area", "iscrowd", "segmentation")])


@case("coco", "annotation_keys", TRAIN, "has no proper category_id, area")
def _an_annotation_of_other_types(root):
    edit(root, lambda c: first(c).update(area="120", category_id=[1]))


@case("coco", "orphan", TRAIN, r"is of image \[1\], which is not listed")
def _an_image_id_in_a_list(root):
    edit(root, lambda c: first(c).update(image_id=[1]))


@case("coco", "image_keys", TRAIN, "image 1 has no proper height", "orphan", "no_entry")
def _a_height_of_text(root):
    edit(root, lambda c: c["images"][0].update(height="48"))


@case("coco", "box", TRAIN, "not four numbers")
def _a_box_of_three_numbers(root):
    edit(root, lambda c: first(c).update(bbox=[1, 2, 3]))


@case("coco", "area", TRAIN, "has the area 0")
def _no_area(root):
    edit(root, lambda c: first(c).update(area=0))


@case("coco", "thin", TRAIN, r"has a box of 10 x 0\.5 pixels")
def _a_box_without_height(root):
    edit(root, lambda c: first(c).update(bbox=[1, 2, 10, 0.5]))


@case("coco", "outside", TRAIN, "has a box outside the image of 64 x 48")
def _a_box_outside(root):
    edit(root, lambda c: first(c).update(bbox=[70, 2, 10, 10]))


@case("coco", "past_edge", TRAIN, "has a box 6 pixels past the edge")
def _a_box_past_the_edge(root):
    edit(root, lambda c: first(c).update(bbox=[60, 2, 10, 10]))


@case("coco", "many_dropped", TRAIN, "1.7 % of its annotations", "area")
def _two_areas(root):
    edit(root, lambda c: [c["annotations"][i].update(area=-1) for i in (0, 1)])


@case("coco", "xyxy", TRAIN, r"\d+ % of its boxes reach past the edge", "past_edge")
def _boxes_as_corners(root):
    def corners(content):
        for number, annotation in enumerate(content["annotations"]):
            annotation["bbox"] = [20 + number % 20, 10, 50, 40]

    edit(root, corners)


@case("coco", "polygon", TRAIN, r"no polygon of three points or more \(4 numbers\)")
def _a_polygon_of_two_points(root):
    edit(root, lambda c: first(c).update(segmentation=[[1, 2, 3, 4]]))


@case("coco", "polygon", TRAIN, r"no polygon of three points or more \(7 numbers\)")
def _a_polygon_of_an_odd_count(root):
    edit(root, lambda c: first(c).update(segmentation=[[1, 2, 3, 4, 5, 6, 7]]))


@case("coco", "polygon", TRAIN, "no polygon of three points")
def _no_polygon(root):
    edit(root, lambda c: first(c).update(segmentation=[]))


@case("coco", "polygon_part", TRAIN, "1 of 2 polygons that are none")
def _a_polygon_beside_a_good_one(root):
    edit(root, lambda c: first(c)["segmentation"].append([1, 2, 3, 4]))


def encoded(height: int = SIZE[1], width: int = SIZE[0]) -> dict:
    array = np.zeros((height, width), np.uint8, order="F")
    array[3:9, 4:12] = 1
    made: Any = coco_mask.encode(array)
    return {"size": made["size"], "counts": made["counts"].decode()}


@case("coco", "rle_size", TRAIN, r"a mask of \[20, 20\] \(height, width\), the image \[48, 64\]")
def _an_rle_of_another_size(root):
    edit(root, lambda c: first(c).update(segmentation=encoded(20, 20)))


@case("coco", "rle", TRAIN, "has an RLE that cannot be decoded")
def _an_rle_of_noise(root):
    edit(root, lambda c: first(c).update(segmentation={"size": [48, 64], "counts": "a" * 40}))


@case("coco", "rle", TRAIN, "has an RLE of .* pixels, the image has 3072")
def _an_rle_that_ends_early(root):
    edit(root, lambda c: first(c).update(segmentation=encoded() | {"counts": encoded()["counts"][:8]}))


@case("coco", "rle", TRAIN, "has an RLE of 30 pixels, the image has 3072")
def _an_uncompressed_rle_that_ends_early(root):
    edit(root, lambda c: first(c).update(segmentation={"size": [48, 64], "counts": [10, 20]}))


@case("coco", "rle", TRAIN, "has an RLE without counts")
def _an_empty_rle(root):
    edit(root, lambda c: first(c).update(segmentation={"size": [48, 64], "counts": ""}))


@case("coco", "rle", TRAIN, "neither polygons nor RLE")
def _an_rle_without_counts(root):
    edit(root, lambda c: first(c).update(segmentation={"size": [48, 64]}))


@case("coco", "rle_form", TRAIN, "1 masks of objects are uncompressed RLE, 1 compressed")
def _two_forms_of_rle(root):
    edit(root, lambda c: first(c).update(segmentation=encoded()))
    edit(root, lambda c: c["annotations"][1].update(segmentation={"size": [48, 64], "counts": [72, 3000]}))


@case("coco", "crowd", TRAIN, "1 of 120 annotations are crowds")
def _a_crowd(root):
    edit(root, lambda c: first(c).update(iscrowd=1, segmentation={"size": [48, 64], "counts": [72, 3000]}))


@case("coco", "without", TRAIN, "1 of 10 images have no annotation; 9 of 10 are trained on")
def _an_image_without_annotation(root):
    edit(root, lambda c: c.update(annotations=[a for a in c["annotations"] if a["image_id"] != 1]))


@case("ade20k", "missing", "annotations/validation", r"paths\.ade20k=FOLDER says where")
def _no_masks(root):
    shutil.rmtree(root / "annotations/validation")


@case("ade20k", "extra_file", "images/training/x.JPG", "is no .jpg file")
def _another_suffix_in_ade20k(root):
    draw(np.random.default_rng(5)).save(root / "images/training/x.JPG")


@case("ade20k", "no_mask", FIRST["ade20k"], f"has no mask {MASK}")
def _an_image_without_mask(root):
    (root / MASK).unlink()


@case("ade20k", "no_image", MASK, "has no image images/training")
def _a_mask_without_image(root):
    (root / FIRST["ade20k"]).unlink()


def save(root: Path, array: np.ndarray, name: str = MASK) -> None:
    Image.fromarray(array).save(root / name)


def labels() -> np.ndarray:
    return np.resize(np.arange(151, dtype=np.uint8), SIZE[::-1])


@case("ade20k", "mask_mode", MASK, "has several channels")
def _a_coloured_mask(root):
    save(root, np.dstack([labels()] * 3))


@case("ade20k", "mask_mode", MASK, "has 16 bits")
def _a_mask_of_16_bits(root):
    save(root, labels().astype(np.uint16))


@case("ade20k", "mask_mode", MASK, "has 1 bit a pixel")
def _a_mask_of_1_bit(root):
    save(root, labels() > 5)


@case("ade20k", "mask_palette", MASK, "the indices are read as classes")
def _a_mask_with_a_palette(root):
    image = Image.fromarray(labels())
    image.putpalette([i % 256 for i in range(768)])
    image.save(root / MASK)


@case("ade20k", "truncated", MASK, "truncated")
def _a_truncated_mask(root):
    (root / MASK).write_bytes((root / MASK).read_bytes()[:-60])


@case("ade20k", "mask_size", MASK, "has 60 x 48 pixels, its image 64 x 48")
def _a_mask_of_another_size(root):
    save(root, labels()[:, :60])


@case("ade20k", "mask_size", MASK, "has 64 x 48 pixels, its image 48 x 64 as EXIF turns it", "exif")
def _an_image_on_its_side_with_its_mask(root):
    turned(root / FIRST["ade20k"], 8)


@case("ade20k", "mask_binary", MASK, "has the values 0 and 255 only")
def _a_mask_of_0_and_255(root):
    save(root, np.where(labels() > 9, 255, 0).astype(np.uint8))


@case("ade20k", "label", MASK, "has the value 200, above the 150 classes")
def _a_label_too_many(root):
    save(root, np.where(labels() == 3, 200, labels()).astype(np.uint8))


@case("ade20k", "void_255", MASK, "has the value 255, no class")
def _some_255(root):
    save(root, np.where(labels() == 3, 255, labels()).astype(np.uint8))


@case("ade20k", "all_void", MASK, "has the value 0 only")
def _a_mask_of_nothing(root):
    save(root, np.zeros(SIZE[::-1], np.uint8))


def change_masks(root: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    for file in (root / "annotations/training").iterdir():
        save(root, change(np.array(Image.open(file))).astype(np.uint8), f"annotations/training/{file.name}")


@case("ade20k", "reduced", "annotations/training", "255 and nowhere 150, the last class", "void_255")
def _masks_that_were_reduced_before(root):
    change_masks(root, lambda m: np.where(m == 0, 255, m.astype(int) - 1))


@case("ade20k", "reduced", "annotations/training", "255 and nowhere 0", "void_255")
def _masks_with_255_for_0(root):
    change_masks(root, lambda m: np.where(m == 0, 255, m))


@case("ade20k", "reduced", "annotations/training", "nowhere the values 0 and 150")
def _masks_up_to_149_without_0(root):
    change_masks(root, lambda m: np.clip(m, 1, 149))


@case("ade20k", "absent_class", "annotations/training", "has no pixel of 2 of 150 classes: 7, 8")
def _classes_that_are_nowhere(root):
    change_masks(root, lambda m: np.where((m == 7) | (m == 8), 1, m))


@pytest.mark.parametrize("name", CASES)
def test_what_is_broken_is_named_with_its_fix(name, copied, paths, capsys):
    one = CASES[name]
    root = copied(one.task)
    one.change(root)
    config = config_of(one.task, root, paths)
    code = front.check(config)
    shown = capsys.readouterr().out
    result = preflight.check(config)
    assert {f.kind for f in result.findings} - {"count"} == {one.kind, *one.also}, shown
    kind = KINDS[one.kind]
    line = next(s for s in shown.splitlines() if s.startswith(f"{kind.weight} {one.kind}: {one.file}: "))
    assert re.search(one.text, line) and kind.fix in line
    assert code == (2 if result.errors else 0)
    assert line in result.file.read_text()
    if kind.single and not any(f.error and not f.single for f in result.findings):  # without it the set is fine
        assert front.write_list(config) == 0 and front.check(config) == 0
        assert "quarantined" in capsys.readouterr().out


def test_every_kind_is_broken_somewhere():
    elsewhere = {"packed", "count", "overlap", "class_count", "class_list", "class_names", "space", "speed", "uncached"}
    elsewhere |= {"quarantined", "mended"}
    assert {c.kind for c in CASES.values()} | elsewhere | {k for c in CASES.values() for k in c.also} == KINDS.keys()
    assert len(CASES) >= 40


def test_every_kind_is_explained():
    table = (ROOT / "docs/data.md").read_text()
    explained = dict(re.findall(r"^\| `(\w+)` \| (error|note)\b", table, re.MULTILINE))
    assert explained == {name: kind.weight for name, kind in KINDS.items()}


# ---- what needs more than one broken file ----------------------------------------------------------------------------


def test_many_findings_are_counted_and_all_of_them_written(copied, paths, capsys):
    root = copied("coco")
    for number in range(1, 9):
        (root / f"train2017/{number:012d}.jpg").write_bytes(b"")
    assert front.main(["check", *words("coco", root), *paths]) == 2
    shown = capsys.readouterr().out
    assert shown.count("error empty_file: train2017/") == SHOWN and f"error empty_file: {8 - SHOWN} more of 8" in shown
    (file,) = re.findall(r"all of them in (\S+)", shown)
    assert Path(file).read_text().count("error empty_file: train2017/") == 8


def whole_set(task: str, tmp_path: Path, **changes: Any) -> sets.DataSet:
    made = preflight.data_set(
        compose([f"task={task}", "scale=paper", f"paths.data={tmp_path}", f"paths.{task}={tmp_path}"])
    )
    return dataclasses.replace(made, **changes)


def test_the_published_counts(tmp_path):
    for task, published in sets.COUNTS.items():
        made = whole_set(task, tmp_path)
        assert made.counts == published
        for split, number in published.items():
            assert not list(made.count(split, "x", number))
            (finding,) = made.count(split, "x", number - 1)
            assert finding.kind == "count" and f"the whole set {number:,}" in finding.problem and not finding.error
    assert (sum(sets.COUNTS["imagenet"].values()), sum(sets.COUNTS["ade20k"].values())) == (1_331_167, 22_210)
    made = whole_set("coco", tmp_path)
    for split, number in (("train", 860_001), ("val", 36_781)):
        content = {"annotations": [{}] * number, "categories": []}
        assert not [f for f in coco.Annotations(made, split, {}, content).check_all() if f.kind == "count"]
        content = {"annotations": [{}] * (number - 1), "categories": []}
        (finding,) = (f for f in coco.Annotations(made, split, {}, content).check_all() if f.kind == "count")
        assert finding.problem == f"has {number - 1:,} annotations, the whole set {number:,}"
    assert whole_set("imagenet", tmp_path).num_classes == 1000 and whole_set("ade20k", tmp_path).num_classes == 150


def test_the_classes_are_those_of_the_libraries():
    openmmlab.library("mmdet")
    from mmdet.datasets import CocoDataset

    assert tuple(NAMES) == CocoDataset.METAINFO["classes"]
    names = sources.synsets()
    assert len(names) == 1000 and list(names) == sorted(names) and names[0] == "n01440764"
    listed = (Path(layouts.__file__).parent / "imagenet_100.txt").read_text().split()
    assert set(listed) <= set(names)


def test_the_number_and_the_names_of_classes(good, tmp_path):
    made = whole_set("imagenet", tmp_path, root=good / "imagenet")
    imagenet.walk(made)
    there = {"train": set(sources.synsets()), "val": set(sources.synsets())}
    assert not list(imagenet.check_classes(made, there))
    kinds = [
        f.kind for f in imagenet.check_classes(made, {"train": {"n01440764", "tench"}, "val": {"n01440764", "tench"}})
    ]
    assert kinds == ["class_count", "class_names"]
    made = dataclasses.replace(made, classes=("n01440764", "n01629819"))
    (finding,) = imagenet.check_classes(made, {"val": {"n01440764"}})
    assert finding.kind == "class_list" and finding.file == "val/n01629819"


def test_only_the_listed_classes_are_read(copied, paths):
    root = copied("imagenet")
    (root / "train/n01443537/0.JPEG").write_bytes(b"")  # of no listed class
    result = found("imagenet", root, paths, "scale=pilot")
    assert {f.kind for f in result.findings} >= {"class_list"} and "empty_file" not in {f.kind for f in result.findings}


def test_a_few_images_in_both_splits_are_a_note(good, tmp_path):
    one = files.Facts(sha256="a", format="JPEG", mode="RGB", width=40, height=40)
    val = {f"val/{i}": dataclasses.replace(one, sha256=str(i)) for i in range(100)}
    assert not list(sets.overlap({"train/0": one}, val))
    both = list(sets.overlap({"train/0": dataclasses.replace(one, sha256="7")}, val))
    assert [f.kind for f in both] == ["overlap"] and both[0].file == "val/7"


def test_an_evaluation_looks_at_the_validation_alone(copied, paths):
    root = copied("coco")
    shutil.rmtree(root / "train2017")
    (root / TRAIN).unlink()
    result = found("coco", root, paths, "mode=eval", "weights=x")
    assert not result.errors and result.decoded == 6
    assert found("coco", root, paths).errors


def test_opencv_turns_images_as_the_check_says(tmp_path):
    """Which is how mmdet and mmsegmentation read them."""
    import mmcv

    for orientation in (1, 3, 6, 8):
        turned(tmp_path / "x.jpg", orientation)
        facts = files.look(str(tmp_path / "x.jpg"), mask=False)
        height, width = mmcv.imfrombytes((tmp_path / "x.jpg").read_bytes()).shape[:2]
        assert sets.as_read(facts) == (width, height) and facts.orientation == orientation


def test_runs_of_an_rle_are_those_of_pycocotools():
    rng = np.random.default_rng(0)
    for _ in range(50):
        array = np.asfortranarray((rng.random((37, 53)) < rng.random()).astype(np.uint8))
        made: Any = coco_mask.encode(array)
        flat = np.concatenate([[0], array.ravel(order="F"), [2]])
        runs = np.diff(np.flatnonzero(np.diff(flat)), prepend=0).tolist()
        assert [n for n in coco.runs(made["counts"].decode()) if n] == [n for n in runs if n]


# ---- the cache -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["imagenet", "coco", "ade20k"])
def test_what_was_decoded_is_not_decoded_again(task, copied, paths):
    root = copied(task)
    before = found(task, root, paths)
    again = found(task, root, paths)
    assert (before.decoded > 10, again.decoded) == (True, 0) and again.findings == before.findings
    file = root / FIRST[task]
    os.utime(file, ns=(1, 1))
    assert found(task, root, paths).decoded == 1
    file.write_bytes(file.read_bytes()[:-300])
    result = found(task, root, paths)
    assert result.decoded == 1 and {f.kind for f in result.errors} == {"truncated"}
    again = found(task, root, paths)
    assert again.decoded == 0 and again.findings == result.findings


def test_several_processes_find_the_same(copied, paths):
    root = copied("imagenet")
    rng = np.random.default_rng(3)
    for i in range(100):
        draw(rng, (33, 33)).save(root / f"train/n01440764/x{i}.JPEG")
    (root / "train/n01440764/x50.JPEG").write_bytes(b"")
    alone = found("imagenet", root, [*paths, "hardware.workers=0"])
    many = found("imagenet", root, [*paths, "hardware.workers=2", f"paths.data={root.parent / 'other'}"])
    assert many.decoded == alone.decoded == 118 and many.findings == alone.findings
    assert {f.kind for f in many.errors} == {"empty_file"}


def start(root: Path, paths: list[str], *more: str) -> subprocess.Popen:
    arguments = ["check", *words("imagenet", root), *paths, *more]
    return subprocess.Popen(
        [sys.executable, "-m", "hypotheses.data", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )


def kept(folder: Path) -> int:
    with (
        contextlib.suppress(sqlite3.OperationalError),
        contextlib.closing(sqlite3.connect(folder / "preflight/files.sqlite", timeout=60)) as connection,
    ):
        return connection.execute("SELECT count(*) FROM files").fetchone()[0]
    return 0


def test_ctrl_c_keeps_what_was_decoded(copied, tmp_path, paths):
    root = copied("imagenet")
    content = io.BytesIO()
    draw(np.random.default_rng(0), (1000, 1000)).save(content, "JPEG")
    for i in range(160):  # some 20 ms each
        (root / f"train/n01440764/x{i}.JPEG").write_bytes(content.getvalue() + bytes(i))
    process = start(root, paths, "hardware.workers=1")
    while not kept(tmp_path / "data"):
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    assert "what was decoded is kept; the same command goes on" in err
    before = kept(tmp_path / "data")
    assert 0 < before < 178
    result = found("imagenet", root, paths, "hardware.workers=0")
    assert result.decoded == 178 - before and not result.errors


def test_two_checks_at_once(copied, tmp_path, paths):
    root = copied("imagenet")
    both = [start(root, paths, "hardware.workers=0") for _ in range(2)]
    ends = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    assert kept(tmp_path / "data") == 18 and found("imagenet", root, paths).decoded == 0


@pytest.mark.parametrize("obstacle", ["a file in its place", "no database"])
def test_where_nothing_can_be_kept_that_is_said(obstacle, good, tmp_path, paths, capsys):
    (tmp_path / "data").mkdir()
    if obstacle == "no database":
        (tmp_path / "data/preflight").mkdir()
        (tmp_path / "data/preflight/files.sqlite").write_text("no database" * 100)
    else:
        (tmp_path / "data/preflight").write_text("")
    for _ in range(2):
        assert front.main(["check", *words("coco", good / "coco"), *paths]) == 0
        shown = capsys.readouterr().out
        assert "note uncached: " in shown and "paths.data=FOLDER" in shown and "16 of them decoded" in shown


def test_a_full_disk_and_the_speed_of_reading_are_said(good, paths, tmp_path, capsys):
    (tmp_path / "results").write_text("")
    assert front.main(["check", *words("coco", good / "coco"), *paths]) == 2
    shown = capsys.readouterr().out
    assert "error space: " in shown and "set paths.results=FOLDER" in shown
    assert re.search(r"note speed: .* MB/s, \d+ images/s \(n = 16,", shown)


# ---- quarantine ------------------------------------------------------------------------------------------------------


def quarantined(task: str, root: Path, paths: list[str]) -> dict[str, str]:
    config = config_of(task, root, paths)
    assert front.write_list(config) == 0
    return quarantine.read(config)


@pytest.mark.parametrize("task", ["imagenet", "coco", "ade20k"])
def test_the_list_is_part_of_the_data_and_the_same_for_all_arms(task, copied, tmp_path, paths, capsys):
    root = copied(task)
    broken = FIRST[task] if task != "ade20k" else MASK
    (root / broken).write_bytes(b"")
    asked = [*words(task, root), *paths]
    before = data.prepare(compose(asked))
    assert quarantined(task, root, paths) == {broken: "empty_file: has no bytes"}
    file = tmp_path / "results/quarantine" / f"{task}.json"
    assert json.loads(file.read_text())["files"] == [{"file": broken, "reason": "empty_file: has no bytes"}]
    assert "1 file in quarantine" in capsys.readouterr().out
    arms = [data.prepare(compose([*asked, f"backbone=mambaout_tiny{arm}"])) for arm in ("", "_ssm", "_identity")]
    assert arms[0] == arms[1] == arms[2] and arms[0].left_out == (broken,)
    assert arms[0].fingerprint != before.fingerprint
    (root / broken).write_bytes(b"other bytes")  # which no arm reads
    assert data.prepare(compose(asked)) == arms[0]
    result = found(task, root, paths)
    assert not result.errors and "quarantined" in {f.kind for f in result.findings}


def test_a_mended_file_is_said_and_taken_off_the_list(copied, paths, capsys):
    root = copied("coco")
    whole = (root / FIRST["coco"]).read_bytes()
    (root / FIRST["coco"]).write_bytes(b"")
    assert quarantined("coco", root, paths)
    (root / FIRST["coco"]).write_bytes(whole)
    assert [f.file for f in found("coco", root, paths).findings if f.kind == "mended"] == [FIRST["coco"]]
    assert quarantined("coco", root, paths) == {}
    assert f"taken off the list: {FIRST['coco']}" in capsys.readouterr().out
    assert data.prepare(compose([*words("coco", root), *paths])).left_out == ()


def test_what_is_no_single_file_is_not_listed(copied, paths, capsys):
    root = copied("imagenet")
    for file in (root / "train").rglob("*.JPEG"):
        file.write_bytes(b"")
    with pytest.raises(
        UserError, match=r"12 of 18 files .* would be left out: those are no single files, so nothing was written"
    ):
        quarantined("imagenet", root, paths)
    assert quarantine.read(compose([*words("imagenet", root), *paths])) == {}
    root = shutil.copytree(root.parent / "imagenet", root.parent / "again")
    with pytest.raises(UserError, match="are drawn: delete"):
        front.main(
            ["quarantine", "task=coco", "scale=demo", "recipe.data.train_images=2", "recipe.data.val_images=2", *paths]
        )


def test_a_list_that_is_none_is_named(good, tmp_path, paths):
    file = tmp_path / "results/quarantine/coco.json"
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    with pytest.raises(UserError, match=rf"{file} is no list of files .*: delete it, then"):
        data.prepare(compose([*words("coco", good / "coco"), *paths]))


def test_imagenet_leaves_them_out(copied, tmp_path, paths):
    root = copied("imagenet")
    gone = [FIRST["imagenet"], "val/n01443537/2.JPEG"]
    for name in gone:
        (root / name).write_bytes(b"")
    quarantined("imagenet", root, paths)
    config = compose([*words("imagenet", root), *paths])
    made = tasks.Run(config, data.prepare(config), tmp_path)
    for split, number in (("train", 11), ("val", 5)):
        source: Any = images.dataset(made, split).source  # type: ignore[attr-defined]
        read = [os.path.relpath(source.name(i), root) for i in range(len(source.labels))]
        assert len(read) == number and not set(read) & set(gone)


def dense_words(task: str) -> list[str]:
    """The paper's task on a small network, for a few images."""
    few = ["scale=paper", "pretrained=none", "backbone=mambaout_atto", "hardware=cpu", "hardware.threads=1", "hardware.workers=0",
           "recipe.batch_size=2", "recipe.resize=[64, 48]"]  # fmt: skip
    if task == "coco":
        return [*few, "recipe.epochs=1", "recipe.schedule={warmup_steps: 1, milestones: []}"]
    return [
        *few,
        "recipe.steps=2",
        "recipe.schedule={warmup_steps: 1}",
        "recipe.crop=[32, 32]",
        "recipe.validate_every=2",
    ]


@pytest.mark.parametrize("task", ["coco", "ade20k"])
def test_detection_and_segmentation_leave_them_out(task, copied, tmp_path, paths):
    root = copied(task)
    gone = {
        "coco": ["train2017/000000000002.jpg", "val2017/000000000003.jpg"],
        "ade20k": ["annotations/training/ADE_train_00000002.png", "images/validation/ADE_val_00000003.jpg"],
    }[task]
    for name in gone:
        (root / name).write_bytes(b"")
    quarantined(task, root, paths)
    config = compose([f"task={task}", f"paths.{task}={root}", *dense_words(task), *paths])
    job: Any = tasks.load(task).build(tasks.Run(config, data.prepare(config), tmp_path / "run"))
    number = {"coco": (9, 5), "ade20k": (7, 3)}[task]
    for loader, left in zip((job.runner.train_dataloader, job.runner.val_dataloader), number, strict=True):
        listed = [loader.dataset.get_data_info(i) for i in range(len(loader.dataset))]
        read = {
            os.path.relpath(path, root) for one in listed for path in (one["img_path"], one["seg_map_path"]) if path
        }
        assert len(listed) == left and not read & set(gone)
    if task == "coco":
        check_judgement(job)


def check_judgement(job: Any) -> None:
    """Perfect detections of all images but the one in quarantine have an AP of 100 percent: nothing of that one is missed."""
    (metric,) = job.runner.val_loop.evaluator.metrics
    dataset, results = job.runner.val_dataloader.dataset, []
    metric.dataset_meta = dataset.metainfo
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        boxes = np.array([one["bbox"] for one in info["instances"]], float)
        labels = np.array([one["bbox_label"] for one in info["instances"]])
        masks = [coco_mask.merge(coco_mask.frPyObjects(one["mask"], 48, 64)) for one in info["instances"]]
        given = {"img_id": info["img_id"], "width": SIZE[0], "height": SIZE[1]}
        scores = np.ones(len(boxes))
        found = {"bboxes": boxes, "labels": labels, "scores": scores, "masks": masks, "mask_scores": scores}
        results.append((given, given | found))
    judged = metric.compute_metrics(results)
    assert judged["bbox_mAP"] == judged["segm_mAP"] == 1.0 and sorted(metric.img_ids) == [1, 2, 4, 5, 6]


# ---- before a run ----------------------------------------------------------------------------------------------------

SMALL_RUN = ["recipe.image_size=32", "recipe.epochs=1", "recipe.schedule.warmup_epochs=0", "recipe.batch_size=4",
             "recipe.precision=32-true", "hardware=cpu", "hardware.workers=0", "hardware.threads=1"]  # fmt: skip


@pytest.mark.parametrize("task", ["imagenet", "coco", "ade20k"])
def test_a_run_on_a_broken_set_ends_before_training(task, copied, tmp_path, paths, command):
    root = copied(task)
    (root / FIRST[task]).write_bytes((root / FIRST[task]).read_bytes()[:300])
    more = SMALL_RUN if task == "imagenet" else dense_words(task)
    done = command("hypotheses.run", *words(task, root), *more, *paths)
    said = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    assert said.startswith(f"error: 1 error in the data at {root}, {FIRST[task]} first: ")
    assert f"python -m hypotheses.data quarantine task={task} scale=paper paths.{task}={root}" in said
    assert f"error truncated: {FIRST[task]}: " in done.stderr and not list((tmp_path / "outputs").rglob("*.pt"))
    assert not (tmp_path / "results/records").exists() and not (tmp_path / "results/attempts").exists()


def test_a_sweep_on_a_broken_set_starts_no_run_and_a_status_decodes_nothing(tmp_path, paths, command):
    root = tmp_path / "imagenet"
    for number, split in enumerate(("train", "val")):
        draw(np.random.default_rng(number), (33, 33)).save(tmp_path / f"{split}.jpg")
        for name in sources.synsets():
            (root / split / name).mkdir(parents=True)
            os.link(tmp_path / f"{split}.jpg", root / split / name / "x.JPEG")
    broken = root / "val/n01440764/x.JPEG"
    broken.unlink()
    broken.write_text("<html>")
    arguments = ["3", "--scale", "paper", f"paths.imagenet={root}", *paths]
    done = command("hypotheses.status", *arguments)
    assert done.returncode == 0 and not (tmp_path / "data/preflight").exists(), done.stderr
    done = command("hypotheses.sweep", *arguments)
    assert done.returncode == 2 and "val/n01440764/x.JPEG first: is a web page" in done.stderr, done.stderr
    assert kept(tmp_path / "data") == 2000 and not list((tmp_path / "outputs").rglob("log.txt"))


def test_a_run_says_what_it_leaves_out_and_records_it(copied, tmp_path, paths, capsys):
    root = copied("imagenet")
    (root / FIRST["imagenet"]).write_bytes(b"")
    config = compose([*words("imagenet", root), *SMALL_RUN, *paths])
    with pytest.raises(
        UserError, match=r"has no bytes; what can be left out one by one: python -m hypotheses\.data quarantine"
    ):
        run(config)
    quarantined("imagenet", root, paths)
    capsys.readouterr()
    made = run(config)
    shown = capsys.readouterr().err
    assert f"note: 1 file quarantined, listed in {tmp_path / 'results/quarantine/imagenet.json'}" in shown
    assert made and made["provenance"]["left_out"] == [FIRST["imagenet"]]
    assert made["data_fingerprint"] == data.prepare(config).fingerprint
    where = [
        made["address"],
        *paths,
        f"paths.imagenet={root}",
        "hardware=cpu",
        "hardware.workers=0",
        "hardware.threads=1",
    ]
    assert reproduce.main(where) == 0 and "seed_0: IDENTICAL" in capsys.readouterr().out
    (again,) = (tmp_path / "outputs/reproduced").rglob("seed_0.json")
    again = json.loads(again.read_text())
    assert again["data_fingerprint"] == made["data_fingerprint"] and again["metrics"] == made["metrics"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["chek"], "no command 'chek'; did you mean check"),
        (["check", "task=coko"], "no task 'coko'; did you mean coco"),
        (["check", "task=imagenet", "scale=smoke"], "there is nothing to check"),
    ],
)
def test_a_wrong_command_is_one_line(arguments, message, one_line_error):
    assert message in one_line_error("hypotheses.data", *arguments)


def test_the_command_imports_no_torch(good, paths):
    code = (
        "import sys; from hypotheses.data import __main__ as m; code = m.main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules and 'timm' not in sys.modules; sys.exit(code)"
    )
    arguments = ["check", *words("imagenet", good / "imagenet"), *paths]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_findings_are_in_order():
    some = [
        Finding("cmyk", "b", ""),
        Finding("truncated", "z", ""),
        Finding("cmyk", "a", ""),
        Finding("missing", "x", ""),
    ]
    assert [line.split(":")[0:2] for line in grouped(some)] == [
        ["error missing", " x"],
        ["error truncated", " z"],
        ["note cmyk", " a"],
        ["note cmyk", " b"],
    ]


# ---- a part of a set -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["coco", "ade20k"])
def test_a_scale_may_take_a_fixed_part_of_the_training_images(task, good, tmp_path, paths, capsys):
    """The same for every arm and seed; what is listed is what is trained on."""
    few = [f"task={task}", *dense_words(task), f"paths.{task}={good / task}", *paths, "recipe.data.train_images=3"]
    taken = []
    for more in (["seed=0"], ["seed=5", "backbone=mambaout_atto_ssm"]):
        config = compose([*few, *more])
        job = tasks.load(task).build(tasks.Run(config, data.prepare(config), tmp_path))
        dataset = job.runner.train_dataloader.dataset
        taken.append(sorted(Path(dataset.get_data_info(i)["img_path"]).name for i in range(len(dataset))))
        folder = good / task / ("val2017" if task == "coco" else "images/validation")
        assert len(job.runner.val_dataloader.dataset) == len(list(folder.iterdir()))
    assert taken[0] == taken[1] and 2 <= len(taken[0]) <= 3  # COCO's without an annotation is not trained on
    assert front.main(["subset", *few]) == 0
    listed = capsys.readouterr().out.split()
    assert len(listed) == 3 and set(taken[0]) <= set(listed)
    with pytest.raises(UserError, match=r"recipe\.data\.train_images=1000: there are \d+; give that many at most"):
        front.main(["subset", *few[:-1], "recipe.data.train_images=1000"])


def test_the_part_depends_on_names_alone():
    names = [f"{number:012d}.jpg" for number in range(1000)]
    first = layouts.chosen(names, 100)
    assert len(first) == 100 and layouts.chosen(names[::-1], 100) == first
    assert first <= layouts.chosen(names, 200)  # a larger part holds the smaller
    assert 40 <= len(first & set(names[:500])) <= 60


def test_the_pilot_takes_a_tenth_and_a_fifth():
    for task, number in (
        ("coco", round(sets.COUNTS["coco"]["train"] / 10)),
        ("ade20k", sets.COUNTS["ade20k"]["train"] // 5),
    ):
        assert (
            compose([f"task={task}", "scale=pilot", "backbone=mambaout_femto"])["recipe"]["data"]["train_images"]
            == number
        )
