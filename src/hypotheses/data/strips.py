"""Strips of digits, the memory task: name the one marked digit of a row from the far end of it.

A strip is a row of square cells with one of scikit-learn's real handwritten digits in each. One digit, in the first `marked`
cells, is drawn dark on light, all others light on dark, and is the strip's class. A network that is read at its last token alone
(tasks/recall.py) has to pick that digit by its mark, carry it past the digits that follow, and ignore those: selective
copying (Mamba, arXiv 2312.00752, section 4.1.1), with images for symbols. `marked` is chosen so that the convolutions of the
network do not reach from the last token to the mark: what they see says nothing about the class.

The digits of the two splits are those of the classification demo of the same seed. Everything is drawn from `seed`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hypotheses.data import digits, once

SCALE = (0.85, 1.0)  # of a digit, in cells
ROTATION = 15.0  # degrees, either way
CONTRAST = (0.7, 1.0)
NOISE = 0.05  # deviation, in units of full scale


def strips(
    seed: int, train_images: int, val_images: int, cell: int, cells: int, marked: int
) -> Iterator[tuple[Path, np.ndarray]]:
    """The whole set of a seed, as (path inside an image folder, grey image (cell, cells * cell) uint8)."""
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    grey, target = found.images / 16.0, found.target
    members = {split: np.array(listed) for split, listed in digits.split(seed).items()}
    for number, (split, count) in enumerate((("train", train_images), ("val", val_images))):
        rng = np.random.default_rng([seed, number])
        for index in range(count):
            label, place = index % 10, rng.integers(marked)  # as many strips of each class
            chosen = rng.choice(members[split], cells, replace=False)
            chosen[place] = rng.choice(members[split][target[members[split]] == label])
            row = [draw(grey[member], cell, i == place, rng) for i, member in enumerate(chosen)]
            noisy = np.hstack(row) + rng.normal(0, NOISE, (cell, cells * cell))
            pixels = np.rint(255 * np.clip(noisy, 0, 1)).astype(np.uint8)
            yield Path(split, str(label), f"{index:05d}.png"), pixels


def draw(digit: np.ndarray, side: int, dark: bool, rng: np.random.Generator) -> np.ndarray:
    """One digit, (8, 8) in [0, 1], in its cell: (side, side) in [0, 1]."""
    scale = rng.uniform(*SCALE) * side / 8
    room = side / 2 - 4 * scale
    centre = (side - 1) / 2 + rng.uniform(-room, room, size=2)
    ink = rng.uniform(*CONTRAST) * digits.render(digit, scale, rng.uniform(-ROTATION, ROTATION), centre, side)
    return 1 - ink if dark else ink


def version(*settings: int) -> str:
    """A short name for what is drawn, apart from the seed."""
    return once.version({"settings": settings}, Path(__file__), Path(digits.__file__))


def prepare(root: Path, seed: int, *settings: int) -> str:
    """Write the strips of a seed under root/train and root/val unless they are there already; return a hash of names and pixels.
    settings: train_images, val_images, cell, cells, marked."""
    known = {"seed": seed, "version": version(*settings)}
    return once.prepare(
        root, known, lambda folder: digits.write(folder, strips(seed, *settings), f"strips, seed {seed}")
    )
