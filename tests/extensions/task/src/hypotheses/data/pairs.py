"""Pairs of digits: which of the two is the larger, the left one or the right one?

Two of scikit-learn's real handwritten digits, of different value, at the two ends of a strip with nothing between them. A network
that mixes no tokens and averages them sees both digits and not which is where. The digits of the two splits are those of the
classification demo of the same seed. Everything is drawn from `seed`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hypotheses.data import digits, once, strips

CLASSES = ("left", "right")


def pairs(seed: int, train_images: int, val_images: int, cell: int, cells: int) -> Iterator[tuple[Path, np.ndarray]]:
    """The whole set of a seed, as (path inside an image folder, grey image (cell, cells * cell) uint8)."""
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    grey, target = found.images / 16.0, found.target
    members = {split: np.array(listed) for split, listed in digits.split(seed).items()}
    for number, (split, count) in enumerate((("train", train_images), ("val", val_images))):
        rng = np.random.default_rng([seed, number])
        for index in range(count):
            right = index % 2  # as many strips of each class
            values = sorted(rng.choice(10, 2, replace=False), reverse=not right)
            strip = np.zeros((cell, cells * cell))
            for value, place in zip(values, (slice(cell), slice(-cell, None)), strict=True):
                chosen = rng.choice(members[split][target[members[split]] == value])
                strip[:, place] = strips.draw(grey[chosen], cell, False, rng)
            noisy = strip + rng.normal(0, strips.NOISE, strip.shape)
            pixels = np.rint(255 * np.clip(noisy, 0, 1)).astype(np.uint8)
            yield Path(split, CLASSES[right], f"{index:05d}.png"), pixels


def version(*settings: int) -> str:
    """A short name for what is drawn, apart from the seed."""
    return once.version({"settings": settings}, Path(__file__), Path(strips.__file__), Path(digits.__file__))


def prepare(root: Path, seed: int, *settings: int) -> str:
    """Write the pairs of a seed under root/train and root/val unless they are there already; return a hash of names and pixels.
    settings: train_images, val_images, cell, cells."""
    known = {"seed": seed, "version": version(*settings)}
    return once.prepare(root, known, lambda folder: digits.write(folder, pairs(seed, *settings), f"pairs, seed {seed}"))
