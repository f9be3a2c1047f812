"""Digit scenes: the detection and segmentation set of the demo, in the layouts of COCO and of ADE20K.

A scene is a crop of one of scikit-learn's two photographs with three to seven of its real handwritten digits on it, scaled,
rotated and noised. The digits of the two splits are those of the classification demo of the same seed, so a network that was
trained there has not seen the digits that it is judged on here; the backgrounds of the splits come from different halves of
the photographs. Everything is drawn from `seed`.

root/coco/     annotations/instances_{train,val}2017.json, train2017/, val2017/: a category per digit; an instance's
               segmentation is polygons, or compressed RLE where it has a hole, which polygons cannot say
root/ade20k/   images/{training,validation}/*.jpg, annotations/{training,validation}/*.png: 8-bit masks with 0 for other (the
               soft edge of a stroke), 1 for the photograph and 2 + k for the digit k
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hypotheses.data import digits, once

SIDE = 96  # pixels
DIGITS = (4, 8)
SCALE = (2.25, 3.25)  # of the 8 x 8 digit: 18 to 26 pixels
ROTATION = 25.0  # degrees, either way
CONTRAST = (0.6, 1.0)
NOISE = 0.16
STROKE, EDGE = 0.5, 0.15  # opacity from which on a pixel is the digit's, or neither the digit's nor the photograph's
OVERLAP = 0.1  # of a digit's square, at most, with another's
CLASSES = tuple(str(label) for label in range(10))
SEGMENTS = ("photograph", *CLASSES)
SPLITS = {"train": ("train2017", "training", "ADE_train"), "val": ("val2017", "validation", "ADE_val")}


@dataclasses.dataclass(frozen=True)
class Scene:
    """image (SIDE, SIDE, 3) uint8; labels and masks (n, SIDE, SIDE) of its digits, which do not overlap; edges, the pixels
    (SIDE, SIDE) that belong to nothing."""

    image: np.ndarray
    labels: list[int]
    masks: np.ndarray
    edges: np.ndarray


def scenes(seed: int, train_images: int, val_images: int) -> Iterator[tuple[str, Scene]]:
    """All scenes of a seed, with the name of their split."""
    from sklearn.datasets import load_digits, load_sample_images

    found: Any = load_digits()
    photographs = [photo / 255 for photo in load_sample_images().images]  # (427, 640, 3)
    members = digits.split(seed)
    for number, (split, count) in enumerate((("train", train_images), ("val", val_images))):
        rng = np.random.default_rng([seed, number])
        half = photographs[0].shape[1] // 2
        grounds = [photo[:, number * half : (number + 1) * half] for photo in photographs]
        for _ in range(count):
            chosen = rng.choice(members[split], rng.integers(DIGITS[0], DIGITS[1] + 1), replace=False)
            yield split, compose(found.images[chosen] / 16, found.target[chosen], grounds, rng)


def compose(grey: np.ndarray, labels: np.ndarray, grounds: list[np.ndarray], rng: np.random.Generator) -> Scene:
    """One scene of the digits `grey` (n, 8, 8) in [0, 1]. A digit for which no place is found is left out."""
    ground = grounds[rng.integers(len(grounds))]
    top, left = (rng.integers(size - SIDE + 1) for size in ground.shape[:2])
    image = ground[top : top + SIDE, left : left + SIDE].copy()
    places: list[tuple[float, float, float]] = []  # centre and half side
    kept, masks = [], []
    edges = np.zeros((SIDE, SIDE), bool)
    for digit, label in zip(grey, labels, strict=True):
        scale = rng.uniform(*SCALE)
        if (place := find_place(places, 4 * scale, rng)) is None:
            continue
        places.append(place)
        opacity = digits.render(digit, scale, rng.uniform(-ROTATION, ROTATION), np.array(place[:2]), SIDE)
        stroke = opacity > STROKE
        for mask in masks:
            mask &= opacity <= EDGE  # what is placed later lies on top
        edges |= opacity > EDGE
        # light on dark and dark on light, so that brightness does not tell a digit
        ink = float(image[stroke].mean() < 0.5) if stroke.any() else 1.0
        image += (opacity * rng.uniform(*CONTRAST))[..., None] * (ink - image)
        masks.append(stroke)
        kept.append(int(label))
    image += rng.normal(0, NOISE, (SIDE, SIDE, 1))
    held = np.array(masks)
    return Scene(np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8), kept, held, edges & ~held.any(0))


def find_place(
    places: list[tuple[float, float, float]], half: float, rng: np.random.Generator
) -> tuple[float, float, float] | None:
    """A centre for a square of half side `half` that overlaps no other by more than OVERLAP; None after many tries."""
    for _ in range(100):
        y, x = rng.uniform(half, SIDE - half, size=2)
        overlaps = (
            max(0.0, half + h - abs(y - cy)) * max(0.0, half + h - abs(x - cx)) / (2 * min(half, h)) ** 2
            for cy, cx, h in places
        )
        if all(overlap <= OVERLAP for overlap in overlaps):
            return y, x, half
    return None


# ---- the two layouts -------------------------------------------------------------------------------------------------


def prepare(root: Path, seed: int, train_images: int, val_images: int) -> str:
    """Write the scenes of a seed under root/coco and root/ade20k unless they are there already; return their fingerprint."""
    settings = {"seed": seed, "version": version(train_images, val_images)}
    return once.prepare(root, settings, lambda folder: write(folder, seed, train_images, val_images))


def version(train_images: int, val_images: int) -> str:
    return once.version({"train": train_images, "val": val_images}, Path(__file__), Path(digits.__file__))


def write(root: Path, seed: int, train_images: int, val_images: int) -> str:
    """Write the scenes in both layouts; return a hash of names, pixels and labels."""
    from PIL import Image
    from tqdm import tqdm

    digest = hashlib.sha256()
    listed: Mapping[str, Any] = {split: {"images": [], "annotations": []} for split in SPLITS}
    for coco, ade, _ in SPLITS.values():
        for folder in (f"coco/{coco}", f"ade20k/images/{ade}", f"ade20k/annotations/{ade}"):
            (root / folder).mkdir(parents=True)
    bar = tqdm(
        scenes(seed, train_images, val_images),
        f"writing digit scenes, seed {seed}",
        total=train_images + val_images,
        unit=" images",
        leave=False,
        disable=None,
    )
    for split, scene in bar:
        coco, ade, stem = SPLITS[split]
        number = len(listed[split]["images"]) + 1
        segments = np.where(scene.edges, 0, 1).astype(np.uint8)
        for label, mask in zip(scene.labels, scene.masks, strict=True):
            segments[mask] = SEGMENTS.index(CLASSES[label]) + 1
        for array in (scene.image, segments, np.array(scene.labels), scene.masks):
            digest.update(f"{split}/{number}\0".encode() + array.tobytes())
        name = f"{number:012d}.jpg"
        Image.fromarray(scene.image).save(root / "coco" / coco / name, quality=95)
        Image.fromarray(scene.image).save(root / "ade20k/images" / ade / f"{stem}_{number:08d}.jpg", quality=95)
        Image.fromarray(segments).save(root / "ade20k/annotations" / ade / f"{stem}_{number:08d}.png")
        listed[split]["images"].append({"id": number, "file_name": name, "height": SIDE, "width": SIDE})
        for label, mask in zip(scene.labels, scene.masks, strict=True):
            if mask.any():
                found = listed[split]["annotations"]
                found.append({"id": len(found) + 1, "image_id": number, **annotation(label, mask)})
    categories = [{"id": label + 1, "name": name, "supercategory": "digit"} for label, name in enumerate(CLASSES)]
    (root / "coco/annotations").mkdir()
    for split, content in listed.items():
        text = json.dumps({"info": {"description": "digit scenes"}, **content, "categories": categories})
        (root / f"coco/annotations/instances_{SPLITS[split][0]}.json").write_text(text)
    return digest.hexdigest()


def annotation(label: int, mask: np.ndarray) -> dict[str, Any]:
    """What COCO says of an instance with the mask (SIDE, SIDE), apart from its ids."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left, bottom, right = map(int, (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1))
    return {
        "category_id": label + 1,
        "bbox": [left, top, right - left, bottom - top],
        "area": int(mask.sum()),
        "iscrowd": 0,
        "segmentation": segmentation(mask),
    }


def segmentation(mask: np.ndarray) -> list[list[float]] | dict[str, Any]:
    """Polygons [x, y, x, y, ...] along the pixels' borders, or compressed RLE where the mask has a hole."""
    import cv2
    from pycocotools import mask as coco

    finer = 4  # contours go through the centres of pixels, so of pixels of a quarter
    outlines, nesting = cv2.findContours(
        np.kron(mask, np.ones((finer, finer))).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE
    )
    if (nesting[0, :, 3] >= 0).any():  # some outline lies inside another
        encoded: Any = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        return {"size": encoded["size"], "counts": encoded["counts"].decode()}
    return [((outline.reshape(-1) + 0.5) / finer).tolist() for outline in outlines if len(outline) > 2]
