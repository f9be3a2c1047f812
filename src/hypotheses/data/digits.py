"""Moved digits: the classification set of the demo, made from scikit-learn's 1,797 real handwritten digits.

Each 8 x 8 digit is placed several times on a 32 x 32 canvas, scaled, rotated and noised. Plain digits would be useless as
a test bed (a network that mixes no tokens reaches 95 %); moved ones are not: what is where must be related over tokens.
A digit's images are all in the same split. Everything is drawn from `seed`, so the arms of a seed share their data and
the draw of split and canvas counts in the spread over seeds.
"""

import functools
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hypotheses.data import once

CANVAS = 32  # pixels
SCALE = (2.5, 3.25)  # of the 8 x 8 digit: 20 to 26 pixels
ROTATION = 20.0  # degrees, either way
CONTRAST = (0.5, 1.0)  # of a stroke against the ground
NOISE = 0.25  # deviation, in units of full scale
VAL_SHARE = 1 / 3  # of the digits of each class


def place(digit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One digit, (8, 8) in [0, 1], somewhere on a noisy canvas: (CANVAS, CANVAS) uint8."""
    scale, angle = rng.uniform(*SCALE), rng.uniform(-ROTATION, ROTATION)
    centre = rng.uniform(4 * scale, CANVAS - 4 * scale, size=2)
    canvas = render(digit, scale, angle, centre, CANVAS)
    canvas = rng.uniform(*CONTRAST) * canvas + rng.normal(0, NOISE, (CANVAS, CANVAS))
    return np.rint(255 * np.clip(canvas, 0, 1)).astype(np.uint8)


def render(digit: np.ndarray, scale: float, degrees: float, centre: np.ndarray, side: int) -> np.ndarray:
    """A digit, (8, 8) in [0, 1], enlarged and turned around `centre` (row, column) of an empty canvas (side, side)."""
    from scipy.ndimage import affine_transform

    angle = np.deg2rad(degrees)
    back = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale  # canvas -> digit
    offset: Any = 3.5 - back @ centre
    return affine_transform(digit, back, offset, output_shape=(side, side), order=1)


def images(seed: int, train_placements: int, val_placements: int) -> Iterator[tuple[Path, np.ndarray]]:
    """The whole set of a seed, as (path inside an image folder, grey image (CANVAS, CANVAS) uint8)."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    grey = digits.images / 16.0
    rng = np.random.default_rng(seed)
    for label in range(10):
        members = rng.permutation(np.flatnonzero(digits.target == label))
        num_val = round(len(members) * VAL_SHARE)
        for split, indices, placements in (
            ("val", members[:num_val], val_placements),
            ("train", members[num_val:], train_placements),
        ):
            for index in indices:
                for placement in range(placements):
                    yield Path(split, str(label), f"{index:04d}_{placement}.png"), place(grey[index], rng)


@functools.cache
def split(seed: int, train_placements: int = 5, val_placements: int = 3) -> dict[str, list[int]]:
    """Which of scikit-learn's digits are in which split of a seed; by default of the classification demo's set."""
    found: dict[str, dict[int, None]] = {"train": {}, "val": {}}
    for path, _ in images(seed, train_placements, val_placements):
        found[path.parts[0]][int(path.stem.split("_")[0])] = None
    return {name: list(members) for name, members in found.items()}


def version(train_placements: int, val_placements: int) -> str:
    """A short name for what is drawn, apart from the seed: the placements and this file's code."""
    return once.version({"train": train_placements, "val": val_placements}, Path(__file__))


def prepare(root: Path, seed: int, train_placements: int, val_placements: int) -> str:
    """Write the set of a seed under root/train and root/val unless it is already there; return a hash of names and pixels."""
    settings = {"seed": seed, "version": version(train_placements, val_placements)}
    drawn = images(seed, train_placements, val_placements)
    return once.prepare(root, settings, lambda folder: write(folder, drawn, f"moved digits, seed {seed}"))


def write(root: Path, drawn: Iterable[tuple[Path, np.ndarray]], what: str) -> str:
    """Write grey images, with their paths inside an image folder, as PNG files; return the hash of their names and pixels."""
    from PIL import Image
    from tqdm import tqdm

    digest = hashlib.sha256()
    bar = tqdm(drawn, f"writing {what}", unit=" images", leave=False, disable=None)
    for path, pixels in bar:
        digest.update(f"{path.as_posix()}\0".encode() + pixels.tobytes())
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / path)
    return digest.hexdigest()
