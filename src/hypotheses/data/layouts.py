"""The folders of COCO 2017 and ADE20K as they are published: what must be there, and a fingerprint of what is."""

import hashlib
import os
from collections.abc import Collection, Iterable
from pathlib import Path

from hypotheses.data import folder
from hypotheses.errors import UserError
from hypotheses.record import sha256

COCO = {
    "train": ("annotations/instances_train2017.json", "train2017"),
    "val": ("annotations/instances_val2017.json", "val2017"),
}
ADE20K = {"train": "training", "val": "validation"}
EXPECTED = {
    "coco": "annotations/instances_{train,val}2017.json, train2017/*.jpg and val2017/*.jpg",
    "ade20k": "images/{training,validation}/*.jpg and annotations/{training,validation}/*.png",
}


def check(source: str, root: Path, training: bool, left_out: Collection[str] = ()) -> str:
    """The fingerprint of `coco` or `ade20k` at `root`: names and sizes of the images, names and bytes or sizes of annotations.

    training  whether both splits are looked at, or for an evaluation the validation split alone
    left_out  files, relative to root, that are not looked at, and with an image of ADE20K its mask

    Raises UserError where a file or folder is missing or empty, or an image of ADE20K has no mask.
    """
    splits = ("train", "val") if training else ("val",)
    digest = hashlib.sha256()
    for split in splits:
        if source == "coco":
            file, images = COCO[split]
            add(digest, list_files(source, root, images, ".jpg", left_out))
            if not (root / file).is_file():
                raise missing(source, root, root / file)
            digest.update(sha256(root / file).encode())
        else:
            gone = {Path(name).stem for name in left_out if name.split("/")[1:2] == [ADE20K[split]]}
            images, masks = (
                [e for e in list_files(source, root, f"{part}/{ADE20K[split]}", suffix) if e.name[:-4] not in gone]
                for part, suffix in (("images", ".jpg"), ("annotations", ".png"))
            )
            odd = {e.name[:-4] for e in images} ^ {e.name[:-4] for e in masks}
            if odd:
                raise UserError(
                    f"{root}: {len(odd)} names of the {ADE20K[split]} split are in only one of images/ and annotations/, "
                    f"{min(odd)} first: make them equal"
                )
            add(digest, images)
            add(digest, masks)
    return digest.hexdigest()


def chosen(names: Iterable[str], number: int) -> set[str]:
    """A fixed part of a set: the `number` names whose hash comes first, whatever their order. Raises UserError where there are fewer."""
    ranked = sorted(names, key=lambda name: hashlib.sha256(f"pilot/{name}".encode()).digest())
    if len(ranked) < number:
        raise UserError(f"recipe.data.train_images={number}: there are {len(ranked)}; give that many at most")
    return set(ranked[:number])


def list_files(
    source: str, root: Path, place: str, suffix: str, left_out: Collection[str] = ()
) -> list[os.DirEntry[str]]:
    if not (root / place).is_dir():
        raise missing(source, root, root / place)
    listed = [e for e in os.scandir(root / place) if e.name.endswith(suffix)]
    found = sorted((e for e in listed if f"{place}/{e.name}" not in left_out), key=lambda entry: entry.name)
    if not found:
        raise UserError(f"{root / place} has no {suffix} file: fill it; expected in {root}: {EXPECTED[source]}")
    return found


def add(digest: "hashlib._Hash", files: list[os.DirEntry[str]]) -> None:
    for entry in files:
        digest.update(f"{entry.name} {folder.size(entry.path)}\n".encode())


def missing(source: str, root: Path, path: Path) -> UserError:
    return UserError(
        f"no {path}: expected in {root}: {EXPECTED[source]}; say where they are with paths.{source}=FOLDER "
        f'(with make: ARGS="paths.{source}=FOLDER"), or use the demo scale, which needs no download'
    )
