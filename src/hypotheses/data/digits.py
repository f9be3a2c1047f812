"""Moved digits: the classification set of the demo, made from scikit-learn's 1,797 real handwritten digits.

Each 8 x 8 digit is placed several times on a 32 x 32 canvas, scaled, rotated and noised. Plain digits would be useless as
a test bed (a network that mixes no tokens reaches 95 %); moved ones are not: what is where must be related over tokens.
A digit's images are all in the same split. Everything is drawn from `seed`, so the arms of a seed share their data and
the draw of split and canvas counts in the spread over seeds.
"""

import fcntl
import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hypotheses.record import write_aside

CANVAS = 32  # pixels
SCALE = (2.5, 3.25)  # of the 8 x 8 digit: 20 to 26 pixels
ROTATION = 20.0  # degrees, either way
CONTRAST = (0.5, 1.0)  # of a stroke against the ground
NOISE = 0.25  # deviation, in units of full scale
VAL_SHARE = 1 / 3  # of the digits of each class


def place(digit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One digit, (8, 8) in [0, 1], somewhere on a noisy canvas: (CANVAS, CANVAS) uint8."""
    from scipy.ndimage import affine_transform

    scale, angle = rng.uniform(*SCALE), np.deg2rad(rng.uniform(-ROTATION, ROTATION))
    side = 8 * scale
    centre = rng.uniform(side / 2, CANVAS - side / 2, size=2)
    back = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale  # canvas -> digit
    offset: Any = 3.5 - back @ centre
    canvas = affine_transform(digit, back, offset, output_shape=(CANVAS, CANVAS), order=1)
    canvas = rng.uniform(*CONTRAST) * canvas + rng.normal(0, NOISE, (CANVAS, CANVAS))
    return np.rint(255 * np.clip(canvas, 0, 1)).astype(np.uint8)


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


def version(train_placements: int, val_placements: int) -> str:
    """A short name for what is drawn, apart from the seed: the placements and this file's code."""
    text = f"{train_placements} {val_placements} ".encode() + Path(__file__).read_bytes()
    return hashlib.sha256(text).hexdigest()[:8]


def prepare(root: Path, seed: int, train_placements: int, val_placements: int) -> str:
    """Write the set of a seed under root/train and root/val unless it is already there, whole; return its fingerprint.

    The fingerprint is a hash of names and pixels. A folder that was left half-written or was changed since is noticed by
    the hash of its files in manifest.json, and made again. Safe against other processes that ask at the same time.
    """
    settings = {"seed": seed, "version": version(train_placements, val_placements)}
    manifest = root / "manifest.json"
    root.parent.mkdir(parents=True, exist_ok=True)
    with open(root.parent / f".{root.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if root.exists():
            try:
                known = json.loads(manifest.read_text())
                if known["settings"] == settings and known["files"] == hash_files(root):
                    return known["fingerprint"]
            except (OSError, ValueError, KeyError, TypeError):
                pass  # no whole manifest: the folder was left half-written
            print(f"{root} is incomplete or not as it was made: making it again", file=sys.stderr)
            shutil.rmtree(root)
        partial = root.parent / f".{root.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        fingerprint = write(partial, seed, train_placements, val_placements)
        known = {"settings": settings, "fingerprint": fingerprint, "files": hash_files(partial)}
        write_aside(partial / manifest.name, json.dumps(known, indent=1) + "\n")
        partial.rename(root)
    return fingerprint


def write(root: Path, seed: int, train_placements: int, val_placements: int) -> str:
    """Write the images of a seed as an image folder of PNG files; return the hash of their names and pixels."""
    from PIL import Image
    from tqdm import tqdm

    digest = hashlib.sha256()
    bar = tqdm(
        images(seed, train_placements, val_placements),
        f"writing moved digits, seed {seed}",
        unit=" images",
        leave=False,
        disable=None,
    )
    for path, pixels in bar:
        digest.update(f"{path.as_posix()}\0".encode() + pixels.tobytes())
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / path)
    return digest.hexdigest()


def hash_files(root: Path) -> str:
    """A hash of the names and bytes of all images under root."""
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.png")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
