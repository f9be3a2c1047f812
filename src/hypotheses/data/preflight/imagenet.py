"""The check of a set in one of ImageNet's layouts: folders of classes, or tar files or tables."""

import contextlib
from collections.abc import Iterator

import numpy as np

from hypotheses.data import sources
from hypotheses.data.folder import SUFFIXES
from hypotheses.data.preflight.files import Facts
from hypotheses.data.preflight.findings import Finding
from hypotheses.data.preflight.sets import DataSet, images, overlap
from hypotheses.errors import UserError


def walk(data: DataSet) -> None:
    kind = sources.layout(data.root)
    for split in data.splits:
        if kind == "folders":
            data.walk(split)
            continue
        with contextlib.suppress(UserError):  # said below
            for file in sources.of_split(data.root, split, kind):
                data.add(file)
                data.packs |= {f"{file.relative_to(data.root).as_posix()}:", f"{split}:"}


def check(data: DataSet) -> Iterator[Finding]:
    return check_folders(data) if sources.layout(data.root) == "folders" else check_packed(data)


def check_packed(data: DataSet) -> Iterator[Finding]:
    """Tar files and tables."""
    classes = data.classes or sources.class_names(data.num_classes)
    found: dict[str, dict[str, Facts]] = {}
    for split in data.splits:
        try:
            source = sources.load(data.root, split, classes, data.index)
        except UserError as error:
            yield Finding("packed", split, str(error))
            continue
        counts = np.bincount(source.labels, minlength=data.num_classes)
        if len(counts) != data.num_classes:
            problem = f"has labels up to {len(counts) - 1}, recipe.num_classes is {data.num_classes}"
            yield Finding("class_count", split, problem)
        for label in np.flatnonzero(counts == 0):
            yield Finding("empty_class", f"{split}/{classes[label]}", "has no image")
        yield from data.count(split, split, len(source.labels))
        found[split] = data.look_in(source)
        yield from images(found[split], dense=False)
    if len(found) == 2:
        yield from overlap(found["train"], found["val"])


def check_folders(data: DataSet) -> Iterator[Finding]:
    there = [split for split in data.splits if split in data.folders]
    yield from (data.missing(split, "folder") for split in data.splits if split not in there)
    classes = {split: {name.split("/")[1] for name in data.folders if name.startswith(f"{split}/")} for split in there}
    yield from check_classes(data, classes)
    found: dict[str, dict[str, Facts]] = {}
    for split in there:
        listed = [name for name in sorted(data.files) if name.startswith(f"{split}/")]
        chosen = [name for name in listed if name.count("/") == 2 and name.lower().endswith(SUFFIXES)]
        yield from (
            Finding("extra_file", name, "is no image of a class")
            for name in sorted(set(listed) - set(chosen))
            if name.count("/") <= 2
        )
        yield from (
            Finding("nested", name, "is a folder inside that of a class")
            for name in sorted(data.folders)
            if name.startswith(f"{split}/") and name.count("/") == 2
        )
        full = {name.split("/")[1] for name in chosen}
        for name in sorted(classes[split] - full):
            yield Finding("empty_class", f"{split}/{name}", f"has no image ({', '.join(SUFFIXES)})")
        yield from data.count(split, split, len(chosen))
        found[split] = data.look(chosen)
        yield from images(found[split], dense=False)
    if len(found) == 2:
        yield from overlap(found["train"], found["val"])


def check_classes(data: DataSet, classes: dict[str, set[str]]) -> Iterator[Finding]:
    everything = set().union(*classes.values()) if classes else set()
    if data.classes is not None:
        for split, names in classes.items():
            for name in sorted(set(data.classes) - names):
                yield Finding("class_list", f"{split}/{name}", "is a listed class without a folder")
        return
    for split, names in classes.items():
        for name in sorted(everything - names):
            yield Finding("class_sets", f"{split}/{name}", "is a class of the other split only")
    if classes and len(everything) != data.num_classes:
        yield Finding(
            "class_count",
            str(data.root),
            f"has {len(everything)} class folders, recipe.num_classes is {data.num_classes}",
        )
    if data.counts and data.num_classes == 1000 and (odd := sorted(everything - set(sources.synsets()))):
        yield Finding(
            "class_names", odd[0], f"is no class of ImageNet-1K by its folder's name, as {len(odd)} folders are"
        )
