"""The check of images and annotations in COCO's layout: what mmdet and pycocotools would stumble over, or pass over in silence."""

import collections
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from hypotheses.data.layouts import COCO
from hypotheses.data.preflight.files import Facts
from hypotheses.data.preflight.findings import Finding
from hypotheses.data.preflight.sets import MANY, SMALL, DataSet, as_read, images, names_once, overlap

ID = (int, str)
IMAGE_KEYS = {"id": ID, "file_name": str, "width": int, "height": int}
ANNOTATION_KEYS = {
    "id": ID,
    "image_id": ID,
    "category_id": ID,
    "bbox": list,
    "area": (int, float),
    "iscrowd": int,
    "segmentation": (list, dict),
}
PAST = 1.0  # pixels that a box may reach past the edge
PAST_SHARE = 0.2  # of boxes past the edge, from which on they are taken for corners


def walk(data: DataSet) -> None:
    for split in data.splits:
        file, folder = COCO[split]
        data.add(data.root / file)
        data.walk(folder)


def check(data: DataSet) -> Iterator[Finding]:
    found: dict[str, dict[str, Facts]] = {}
    for split in data.splits:
        file, folder = COCO[split]
        listed = [name for name in data.inside(folder) if name.endswith(".jpg")]
        if folder not in data.folders:
            yield data.missing(folder, "folder")
        else:
            for name in sorted(n for n in data.files if n.startswith(f"{folder}/")):
                if name not in listed and (name.count("/") > 1 or not name.endswith(".jpg")):
                    yield Finding("extra_file", name, "is no .jpg file of this folder")
            if not listed:
                yield Finding("empty_folder", folder, "has no .jpg file")
            yield from data.count(split, folder, len(listed))
            found[split] = data.look(listed)
            yield from images(found[split], dense=True)
        if file not in data.files:
            yield data.missing(file, "file")
            continue
        yield from check_file(data, split, found.get(split, {}))
    if len(found) == 2:
        yield from overlap(found["train"], found["val"])


def check_file(data: DataSet, split: str, found: Mapping[str, Facts]) -> Iterator[Finding]:
    """One annotation file, beside what is known of the images."""
    file, folder = COCO[split]
    try:
        content = json.loads((data.root / file).read_bytes())
    except OSError as error:
        yield Finding("unreadable", file, error.strerror or str(error))
        return
    except ValueError as error:
        yield Finding("json", file, f"cannot be read as JSON ({error})")
        return
    if isinstance(content, dict) and isinstance(content.get("images"), list) and not content.get("annotations"):
        yield Finding("no_annotations", file, "has no annotations")
        return
    parts = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(is_table(content.get(part)) for part in parts):
        yield Finding("json", file, f"is not a JSON object with the lists of objects {', '.join(parts)}")
        return
    yield from check_categories(data, file, content["categories"])
    whole = [entry for entry in content["images"] if not lacking(entry, IMAGE_KEYS)]
    for entry in content["images"]:
        if lack := lacking(entry, IMAGE_KEYS):
            yield Finding("image_keys", file, f"image {entry.get('id', entry.get('file_name'))} has no proper {lack}")
    yield from check_images(data, file, folder, whole, found)
    entries = {entry["id"]: entry for entry in whole}
    yield from Annotations(data, split, entries, content).check()


def is_table(part: Any) -> bool:
    return isinstance(part, list) and all(isinstance(entry, dict) for entry in part)


def lacking(entry: Mapping[str, Any], keys: Mapping[str, Any]) -> str:
    """The keys that are not there, or have a value of another type."""
    return ", ".join(key for key, types in keys.items() if not isinstance(entry.get(key), types))


def check_categories(data: DataSet, file: str, categories: list[Any]) -> Iterator[Finding]:
    """Against the names of mmdet, which labels what it finds by the order of the file and names labels by its own."""
    names = [str(entry.get("name")) for entry in categories]
    wanted = data.classes or ()
    ids = [str(entry.get("id")) for entry in categories]
    for part in (ids, names):
        yield from names_once(
            part, lambda name, n: Finding("category_twice", file, f"category {name} is there {n} times")
        )
    if missing := [name for name in wanted if name not in names]:
        yield Finding("category_missing", file, f"lacks {len(missing)} of {len(wanted)} categories: {some(missing)}")
    if odd := [name for name in names if name not in wanted]:
        yield Finding("category_unknown", file, f"has {len(odd)} categories that are no classes: {some(odd)}")
    common = [name for name in names if name in wanted]
    if sorted(set(common), key=common.index) != sorted(set(common), key=wanted.index):
        place = next(i for i, name in enumerate(common) if name != [w for w in wanted if w in common][i])
        yield Finding(
            "category_order", file, f"has {common[place]} where {[w for w in wanted if w in common][place]} is due"
        )


def some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def check_images(
    data: DataSet, file: str, folder: str, entries: list[Any], found: Mapping[str, Facts]
) -> Iterator[Finding]:
    yield from names_once(
        (str(entry["id"]) for entry in entries),
        lambda name, n: Finding("image_twice", file, f"image id {name} is there {n} times"),
    )
    yield from names_once(
        (entry["file_name"] for entry in entries),
        lambda name, n: Finding("file_twice", file, f"{folder}/{name} belongs to {n} images"),
    )
    named = {f"{folder}/{entry['file_name']}": entry for entry in entries}
    for name in sorted(found.keys() - named.keys()):
        yield Finding("no_entry", name, f"is not listed in {file}")
    for name, entry in named.items():
        facts = found.get(name)
        if folder not in data.folders or (facts and facts.problem):
            continue  # said before
        if facts is None:
            yield Finding("no_file", name, f"is listed in {file} and not there")
        elif as_read(facts) != (entry["width"], entry["height"]):
            (width, height), turned = as_read(facts), " as EXIF turns it" if facts.orientation >= 5 else ""
            yield Finding(
                "size",
                name,
                f"has {width} x {height} pixels{turned}, {entry['width']} x {entry['height']} in {file}",
            )


class Annotations:
    """Those of a split, one by one and counted."""

    def __init__(self, data: DataSet, split: str, entries: Mapping[Any, Any], content: Mapping[str, Any]):
        self.data, self.split, self.entries = data, split, entries
        self.file, self.folder = COCO[split]
        self.annotations: list[Any] = content["annotations"]
        self.categories = {
            str(entry.get("id")) for entry in content["categories"] if entry.get("name") in (data.classes or ())
        }
        self.known = {str(entry.get("id")) for entry in content["categories"]}
        self.number: collections.Counter[str] = collections.Counter()
        self.full: set[Any] = set()  # images with an annotation of a class, which mmdet trains on

    def check(self) -> Iterator[Finding]:
        ids = (str(a["id"]) for a in self.annotations if a.get("id") is not None)
        yield from names_once(
            ids, lambda name, n: Finding("annotation_twice", self.file, f"annotation id {name} is there {n} times")
        )
        for annotation in self.annotations:
            yield from self.check_one(annotation)
        yield from self.check_all()

    def image(self, annotation: Any) -> Any:
        """Its entry; None where there is none."""
        number = annotation.get("image_id")
        return self.entries.get(number) if isinstance(number, ID) else None

    def say(self, kind: str, annotation: Any, problem: str) -> Finding:
        entry = self.image(annotation)
        drop = f"{self.folder}/{entry['file_name']}" if entry else ""
        where = f" of {drop}" if drop else ""
        return Finding(kind, self.file, f"annotation {annotation.get('id')}{where} {problem}", drop)

    def check_one(self, annotation: Any) -> Iterator[Finding]:
        image = self.image(annotation)
        if image is None:
            yield self.say("orphan", annotation, f"is of image {annotation.get('image_id')}, which is not listed")
            return
        if lack := lacking(annotation, ANNOTATION_KEYS):
            yield self.say("annotation_keys", annotation, f"has no proper {lack}")
            return
        if str(annotation["category_id"]) not in self.known:
            yield self.say(
                "no_category", annotation, f"is of category {annotation['category_id']}, which is not listed"
            )
            return
        if str(annotation["category_id"]) in self.categories:
            self.full.add(image["id"])
        self.number["crowd"] += bool(annotation["iscrowd"])
        yield from self.check_mask(annotation, image)
        box = annotation["bbox"]
        if not numbers(box) or len(box) != 4:
            yield self.say("box", annotation, f"has the box {str(box)[:60]}, not four numbers")
            return
        yield from self.check_box(annotation, image)

    def check_box(self, annotation: Any, image: Any) -> Iterator[Finding]:
        """What mmdet leaves out of training in silence, in its order, and boxes that it cuts."""
        x, y, w, h = annotation["bbox"]
        width, height, area = image["width"], image["height"], annotation["area"]
        inside = max(0, min(x + w, width) - max(x, 0)) * max(0, min(y + h, height) - max(y, 0))
        past = max(-x, -y, x + w - width, y + h - height)
        self.number["boxes"] += 1
        self.number["past"] += past > PAST
        dropped = ""
        if w < 1 or h < 1:
            dropped = "thin"
            yield self.say("thin", annotation, f"has a box of {w:g} x {h:g} pixels")
        elif inside == 0:
            dropped = "outside"
            yield self.say(
                "outside", annotation, f"has a box outside the image of {width} x {height}: {annotation['bbox']}"
            )
        elif not numbers([area]) or area <= 0:
            dropped = "area"
            yield self.say("area", annotation, f"has the area {area}")
        elif past > PAST:
            yield self.say("past_edge", annotation, f"has a box {past:g} pixels past the edge of the image")
        self.number["dropped"] += bool(dropped)

    def check_mask(self, annotation: Any, image: Any) -> Iterator[Finding]:
        mask = annotation["segmentation"]
        if isinstance(mask, list):
            bad = [part for part in mask if not numbers(part) or len(part) < 6 or len(part) % 2]
            if len(bad) == len(mask):
                count = len(bad[0]) if bad and isinstance(bad[0], list) else 0
                yield self.say("polygon", annotation, f"has no polygon of three points or more ({count} numbers)")
            elif bad:
                yield self.say("polygon_part", annotation, f"has {len(bad)} of {len(mask)} polygons that are none")
            return
        if not isinstance(mask, dict) or not {"counts", "size"} <= mask.keys():
            yield self.say("rle", annotation, "has a segmentation that is neither polygons nor RLE")
            return
        counts, size = mask["counts"], mask["size"]
        self.number["list" if isinstance(counts, list) else "string"] += not annotation["iscrowd"]
        if size != [image["height"], image["width"]]:
            yield self.say(
                "rle_size",
                annotation,
                f"has a mask of {size} (height, width), the image {[image['height'], image['width']]}",
            )
        elif problem := undecodable(counts, *size):
            yield self.say("rle", annotation, problem)

    def check_all(self) -> Iterator[Finding]:
        """Of the split as a whole."""
        number, total = self.number, len(self.annotations)
        wanted = self.data.annotations.get(self.split, total)
        if total != wanted:
            yield Finding("count", self.file, f"has {total:,} annotations, the whole set {wanted:,}")
        if number["past"] > PAST_SHARE * number["boxes"]:
            share = 100 * number["past"] / number["boxes"]
            yield Finding("xyxy", self.file, f"{share:.0f} % of its boxes reach past the edge of their image")
        if number["dropped"] > MANY * total:
            share = 100 * number["dropped"] / total
            yield Finding(
                "many_dropped", self.file, f"{share:.1f} % of its annotations are left out for their box or area"
            )
        if number["crowd"]:
            yield Finding("crowd", self.file, f"{number['crowd']:,} of {total:,} annotations are crowds")
        if number["list"] and number["string"]:
            yield Finding(
                "rle_form",
                self.file,
                f"{number['list']:,} masks of objects are uncompressed RLE, {number['string']:,} compressed",
            )
        trained = [e for e in self.entries.values() if e["id"] in self.full and min(e["width"], e["height"]) >= SMALL]
        annotated = {a["image_id"] for a in self.annotations if isinstance(a.get("image_id"), ID)}
        if empty := len(self.entries.keys() - annotated):
            kept = f"; {len(trained):,} of {len(self.entries):,} are trained on" if self.split == "train" else ""
            yield Finding("without", self.file, f"{empty:,} of {len(self.entries):,} images have no annotation{kept}")


def numbers(values: Any) -> bool:
    """Whether it is a list of finite numbers."""
    return isinstance(values, list) and all(
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) for value in values
    )


def undecodable(counts: Any, height: int, width: int) -> str:
    """What is wrong with the counts of an RLE; empty where nothing is."""
    from pycocotools import mask

    if isinstance(counts, list):
        if not all(isinstance(count, int) and count >= 0 for count in counts):
            return "has an RLE of what are no numbers of pixels"
        pixels = sum(counts)
    elif isinstance(counts, str) and counts.isascii() and counts:
        try:
            mask.decode({"size": [height, width], "counts": counts.encode()})
        except (ValueError, TypeError, MemoryError) as error:
            return f"has an RLE that cannot be decoded ({error})"
        pixels = sum(runs(counts))
    else:
        return "has an RLE without counts"
    return "" if pixels == height * width else f"has an RLE of {pixels} pixels, the image has {height * width}"


def runs(counts: str) -> list[int]:
    """The lengths in a compressed RLE, as in pycocotools' rleFrString: it would decode one that ends too early into whatever lies
    in the memory."""
    found: list[int] = []
    value = shift = 0
    for character in counts.encode():
        bits = character - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= 1 << shift if bits & 16 else 0
            found.append(value + (found[-2] if len(found) > 2 else 0))
            value = shift = 0
    return found
