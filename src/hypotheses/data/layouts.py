"""The folders of COCO 2017 and ADE20K as they are published: what must be there, and a fingerprint of what is."""

import hashlib
import os
from pathlib import Path

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


def check(source: str, root: Path, training: bool) -> str:
    """The fingerprint of `coco` or `ade20k` at `root`: names and sizes of the images, names and bytes or sizes of annotations.

    training  whether both splits are looked at, or for an evaluation the validation split alone

    Raises UserError where a file or folder is missing or empty, or an image of ADE20K has no mask.
    """
    splits = ("train", "val") if training else ("val",)
    digest = hashlib.sha256()
    for split in splits:
        if source == "coco":
            file, folder = COCO[split]
            add(digest, list_files(source, root, folder, ".jpg"))
            if not (root / file).is_file():
                raise missing(source, root, root / file)
            digest.update(sha256(root / file).encode())
        else:
            images = list_files(source, root, f"images/{ADE20K[split]}", ".jpg")
            masks = list_files(source, root, f"annotations/{ADE20K[split]}", ".png")
            odd = {e.name[:-4] for e in images} ^ {e.name[:-4] for e in masks}
            if odd:
                raise UserError(
                    f"{root}: {len(odd)} names of the {ADE20K[split]} split are in only one of images/ and annotations/, "
                    f"{min(odd)} first: make them equal"
                )
            add(digest, images)
            add(digest, masks)
    return digest.hexdigest()


def list_files(source: str, root: Path, folder: str, suffix: str) -> list[os.DirEntry[str]]:
    if not (root / folder).is_dir():
        raise missing(source, root, root / folder)
    found = sorted((e for e in os.scandir(root / folder) if e.name.endswith(suffix)), key=lambda entry: entry.name)
    if not found:
        raise UserError(f"{root / folder} has no {suffix} file: fill it; expected in {root}: {EXPECTED[source]}")
    return found


def add(digest: "hashlib._Hash", files: list[os.DirEntry[str]]) -> None:
    for entry in files:
        digest.update(f"{entry.name} {entry.stat().st_size}\n".encode())


def missing(source: str, root: Path, path: Path) -> UserError:
    return UserError(
        f"no {path}: expected in {root}: {EXPECTED[source]}; say where they are with paths.{source}=FOLDER "
        f'(with make: ARGS="paths.{source}=FOLDER"), or use the demo scale, which needs no download'
    )
