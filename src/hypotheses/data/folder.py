"""ImageNet's folder layout: train/<class>/<image> and val/<class>/<image>, with the same classes in both."""

import hashlib
import os
from collections.abc import Collection, Iterable
from pathlib import Path

from hypotheses.errors import UserError

SPLITS = ("train", "val")
SUFFIXES = (".jpeg", ".jpg", ".png")


def list_images(
    root: Path, split: str, classes: Iterable[str], left_out: Collection[str] = ()
) -> list[tuple[str, int]]:
    """(path, label) of every image of a split, sorted by class and name, but those that are left out."""
    samples = []
    for label, name in enumerate(classes):
        folder = root / split / name
        names = sorted(e.name for e in os.scandir(folder) if e.name.lower().endswith(SUFFIXES))
        paths = [os.path.join(folder, image) for image in names if f"{split}/{name}/{image}" not in left_out]
        samples += [(path, label) for path in paths]
    return samples


def check(
    root: Path,
    num_classes: int,
    class_list: str | None,
    splits: tuple[str, ...] = SPLITS,
    left_out: Collection[str] = (),
) -> tuple[tuple[str, ...], str]:
    """The class names and the fingerprint (names and sizes of all files) of an image folder, checked.

    class_list  a file beside this one that names the classes to use, one a line; None for all that are there
    splits      what is looked at: for an evaluation val/ alone
    left_out    files, relative to root, that are not looked at

    Raises UserError where a folder or a class is missing or empty, or the number of classes is not `num_classes`.
    """
    for split in splits:
        if not (root / split).is_dir():
            expected = " and ".join(f"{root}/{s}/<class>/*.JPEG" for s in splits)
            raise UserError(
                f"no images at {root / split}: expected {expected}; "
                'say where they are with paths.imagenet=FOLDER (with make: ARGS="paths.imagenet=FOLDER"), '
                "or use the demo scale, which needs no download"
            )
    names = {split: {e.name for e in os.scandir(root / split) if e.is_dir()} for split in splits}
    if class_list:
        wanted = set((Path(__file__).parent / class_list).read_text().split())
        for split in splits:
            if missing := sorted(wanted - names[split]):
                raise UserError(
                    f"{root / split} lacks {len(missing)} of the {len(wanted)} classes of {class_list}, "
                    f"{missing[0]} first: point paths.imagenet at a whole ImageNet-1K"
                )
            names[split] = wanted
    if odd := sorted(names[splits[0]] ^ names[splits[-1]]):
        raise UserError(
            f"{root}: {len(odd)} classes are in only one of train/ and val/, {odd[0]} first: make them equal"
        )
    classes = tuple(sorted(names[splits[0]]))
    if len(classes) != num_classes:
        raise UserError(
            f"{root}: {len(classes)} class folders, but recipe.num_classes={num_classes}: set one to the other"
        )
    digest, left_out = hashlib.sha256(), frozenset(left_out)
    for split in splits:
        counts = [0] * len(classes)
        for path, label in list_images(root, split, classes, left_out):
            counts[label] += 1
            digest.update(f"{split}/{classes[label]}/{os.path.basename(path)} {size(path)}\n".encode())
        if 0 in counts:
            empty = root / split / classes[counts.index(0)]
            raise UserError(f"{empty} has no image ({', '.join(SUFFIXES)}): fill the folder, or remove the class")
    return classes, digest.hexdigest()


def size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): copy it again, or remove it") from error
