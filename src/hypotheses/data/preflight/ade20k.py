"""The check of images and masks in ADE20K's layout."""

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from hypotheses.data.layouts import ADE20K
from hypotheses.data.preflight.files import Facts
from hypotheses.data.preflight.findings import Finding
from hypotheses.data.preflight.sets import DataSet, as_read, images, overlap

VOID = 255  # left out of loss and metric, and so is 0, from which 1 is subtracted on reading


def walk(data: DataSet) -> None:
    for split in data.splits:
        data.walk(f"images/{ADE20K[split]}")
        data.walk(f"annotations/{ADE20K[split]}")


def check(data: DataSet) -> Iterator[Finding]:
    found: dict[str, dict[str, Facts]] = {}
    for split in data.splits:
        listed: dict[str, list[str]] = {}
        for part, suffix in (("images", ".jpg"), ("annotations", ".png")):
            folder = f"{part}/{ADE20K[split]}"
            if folder not in data.folders:
                yield data.missing(folder, "folder")
                continue
            inside = [name for name in sorted(data.files) if name.startswith(f"{folder}/")]
            listed[part] = [name for name in data.inside(folder) if name.endswith(suffix)]
            for name in sorted(set(inside) - set(listed[part])):
                yield Finding("extra_file", name, f"is no {suffix} file of this folder")
            if not listed[part]:
                yield Finding("empty_folder", folder, f"has no {suffix} file")
        if len(listed) < 2:
            continue
        yield from data.count(split, f"images/{ADE20K[split]}", len(listed["images"]))
        masks = {PurePosixPath(name).stem: name for name in listed["annotations"]}
        pairs = {PurePosixPath(name).stem: name for name in listed["images"]}
        for stem in sorted(pairs.keys() - masks):
            yield Finding("no_mask", pairs[stem], f"has no mask annotations/{ADE20K[split]}/{stem}.png")
        for stem in sorted(masks.keys() - pairs):
            yield Finding("no_image", masks[stem], f"has no image images/{ADE20K[split]}/{stem}.jpg")
        found[split] = data.look(listed["images"])
        yield from images(found[split], dense=True)
        read = data.look(listed["annotations"], mask=True)
        yield from check_masks(data, read)
        for stem in sorted(pairs.keys() & masks):
            yield from check_size(found[split][pairs[stem]], masks[stem], read[masks[stem]])
        yield from check_labels(data, f"annotations/{ADE20K[split]}", read)
    if len(found) == 2:
        yield from overlap(found["train"], found["val"])


def check_masks(data: DataSet, masks: Mapping[str, Facts]) -> Iterator[Finding]:
    """Of each mask alone."""
    for name, facts in masks.items():
        shown = ", ".join(map(str, facts.labels[:3])) + (", ..." if len(facts.labels) > 3 else "")
        if facts.problem:
            yield Finding(facts.problem, name, facts.text)
        elif facts.mode not in ("L", "P"):
            what = {"1": "1 bit a pixel"}.get(
                facts.mode, "16 bits" if facts.mode.startswith("I") else "several channels"
            )
            yield Finding("mask_mode", name, f"has {what} (PIL's mode {facts.mode}), not 8-bit grey")
        elif facts.labels == (0, VOID):
            yield Finding("mask_binary", name, "has the values 0 and 255 only")
        elif set(facts.labels) <= {0, VOID}:
            yield Finding("all_void", name, f"has the value {shown} only, and so no class")
        elif odd := [value for value in facts.labels if data.num_classes < value != VOID]:
            yield Finding("label", name, f"has the value {odd[0]}, above the {data.num_classes} classes")
        elif VOID in facts.labels:
            yield Finding("void_255", name, "has the value 255, no class")
        if facts.mode == "P" and not facts.problem:
            yield Finding("mask_palette", name, "has a palette")


def check_size(image: Facts, name: str, mask: Facts) -> Iterator[Finding]:
    if image.problem or mask.problem:
        return
    if as_read(image) != (mask.width, mask.height):
        (width, height), turned = as_read(image), " as EXIF turns it" if image.orientation >= 5 else ""
        yield Finding(
            "mask_size",
            name,
            f"has {mask.width} x {mask.height} pixels, its image {width} x {height}{turned}",
        )


def check_labels(data: DataSet, folder: str, masks: Mapping[str, Facts]) -> Iterator[Finding]:
    """Of all masks of a split: whether they are numbered as published, and which classes are in none."""
    grey = [facts for facts in masks.values() if facts.mode in ("L", "P") and not facts.problem]
    seen = {value for facts in grey for value in facts.labels}
    classes = set(range(1, data.num_classes + 1))
    if not seen & classes or seen - classes - {0, VOID}:
        return  # said of each mask
    last = data.num_classes
    if VOID in seen and (0 not in seen or last not in seen):
        gone = "0" if 0 not in seen else f"{last}, the last class,"
        yield Finding("reduced", folder, f"has the value 255 and nowhere {gone} so 0 is a class there")
    elif 0 not in seen and max(seen) == last - 1:
        yield Finding("reduced", folder, f"has nowhere the values 0 and {last}")
    elif absent := sorted(classes - seen):
        shown = ", ".join(map(str, absent[:10])) + (", ..." if len(absent) > 10 else "")
        yield Finding("absent_class", folder, f"has no pixel of {len(absent)} of {last} classes: {shown}")
