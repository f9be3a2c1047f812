"""What a check of data can find: every kind once, with its weight and what to do. docs/data.md explains each.

An error keeps a run from beginning; a note is said and does not.
"""

import dataclasses
from collections.abc import Iterable

ERROR, NOTE = "error", "note"
SHOWN = 3  # findings of a kind that are printed; all are in the file


@dataclasses.dataclass(frozen=True)
class Kind:
    """weight  ERROR or NOTE
    fix     what to do about it
    single  whether the file can be left out alone, by the quarantine"""

    weight: str
    fix: str
    single: bool = False


COPY = "copy it again"
MEND = "mend the annotation file, or download it again"
KINDS = {
    # ---- any set
    "missing": Kind(ERROR, "unpack the set there, or say where it is"),
    "empty_folder": Kind(ERROR, "fill it"),
    "count": Kind(NOTE, "nothing, if a part of the set is meant; else unpack it again"),
    "extra_file": Kind(NOTE, "nothing; it is not read"),
    "overlap": Kind(NOTE, "nothing: the published sets have a few; the scores are a little too good"),
    "overlap_many": Kind(ERROR, "unpack the two splits again, each into its own folder"),
    "space": Kind(ERROR, "make room, or choose another folder"),
    "speed": Kind(NOTE, "nothing, if it is as fast as the training needs"),
    "uncached": Kind(NOTE, "set paths.data=FOLDER to one that can be written to, or each check decodes everything"),
    "quarantined": Kind(NOTE, "nothing; it is left out in all arms"),
    "mended": Kind(NOTE, "write the list again to read the file again"),
    # ---- a file
    "unreadable": Kind(ERROR, "give yourself the right to read it, or mend the link"),
    "empty_file": Kind(ERROR, COPY, True),
    "text": Kind(ERROR, "download it again", True),
    "truncated": Kind(ERROR, COPY, True),
    "undecodable": Kind(ERROR, COPY, True),
    "bomb": Kind(ERROR, "make it smaller", True),
    "huge": Kind(NOTE, "nothing; it takes its time to decode"),
    "tiny": Kind(ERROR, "replace it", True),
    "small": Kind(NOTE, "nothing; training on COCO leaves it out, on ADE20K it is enlarged"),
    "misnamed": Kind(NOTE, "nothing; it is read as what it is"),
    "format": Kind(ERROR, "save it as JPEG", True),
    "cmyk": Kind(NOTE, "nothing; it is converted on reading"),
    "palette": Kind(NOTE, "nothing; it is converted on reading"),
    "alpha": Kind(NOTE, "nothing; transparency is dropped on reading"),
    "deep": Kind(ERROR, "save it with 8 bits a channel", True),
    "exif": Kind(NOTE, "nothing, if the annotations were made on what is read"),
    "bad_exif": Kind(NOTE, "nothing; it is read as it lies"),
    # ---- ImageNet
    "class_sets": Kind(ERROR, "make train/ and val/ have the same folders"),
    "class_count": Kind(ERROR, "set recipe.num_classes to the folders, or the folders to it"),
    "class_list": Kind(ERROR, "point paths.imagenet at a whole ImageNet-1K"),
    "class_names": Kind(NOTE, "nothing, if you train; published weights name the classes of ImageNet-1K in its order"),
    "packed": Kind(ERROR, "mend or replace the tar files or tables"),
    "empty_class": Kind(ERROR, "fill the folder, or remove the class"),
    "nested": Kind(ERROR, "move its images up into the folder of their class: they are not read"),
    # ---- COCO
    "json": Kind(ERROR, MEND),
    "no_annotations": Kind(ERROR, "use instances_*.json; image_info_test*.json has no annotations"),
    "image_keys": Kind(ERROR, MEND),
    "image_twice": Kind(ERROR, MEND),
    "file_twice": Kind(ERROR, MEND),
    "annotation_twice": Kind(ERROR, MEND),
    "orphan": Kind(ERROR, MEND),
    "no_file": Kind(ERROR, "copy the image there", True),
    "no_entry": Kind(NOTE, "nothing; it is not read"),
    "size": Kind(ERROR, "copy the published image, or mend its width and height", True),
    "category_twice": Kind(ERROR, MEND),
    "category_missing": Kind(ERROR, "name the categories as the published set does"),
    "category_order": Kind(ERROR, "sort the categories as in the published file: labels are given in that order"),
    "category_unknown": Kind(ERROR, "name the categories as the published set does"),
    "no_category": Kind(ERROR, "mend the category_id", True),
    "annotation_keys": Kind(ERROR, "add what is missing", True),
    "box": Kind(ERROR, "write [x, y, width, height]", True),
    "area": Kind(NOTE, "nothing; training leaves it out"),
    "thin": Kind(NOTE, "nothing; training leaves it out"),
    "outside": Kind(NOTE, "nothing; training leaves it out"),
    "many_dropped": Kind(ERROR, "mend the annotations"),
    "past_edge": Kind(NOTE, "nothing; it is cut at the edge"),
    "xyxy": Kind(ERROR, "write boxes as [x, y, width, height], not [x1, y1, x2, y2]"),
    "polygon": Kind(ERROR, "write at least three points, x and y of each", True),
    "polygon_part": Kind(NOTE, "nothing; training leaves that part out"),
    "rle": Kind(ERROR, "encode the mask again with pycocotools", True),
    "rle_size": Kind(ERROR, "encode the mask at the size of the image", True),
    "rle_form": Kind(NOTE, "nothing; both forms are read"),
    "crowd": Kind(NOTE, "nothing; crowds are not trained on, and detections in them not counted"),
    "without": Kind(NOTE, "nothing; training leaves them out, validation does not"),
    # ---- ADE20K
    "no_mask": Kind(ERROR, "copy the mask there", True),
    "no_image": Kind(ERROR, "copy the image there, or remove the mask"),
    "mask_mode": Kind(ERROR, "save the mask as 8-bit grey, the value of a pixel its class", True),
    "mask_palette": Kind(NOTE, "nothing; the indices are read as classes"),
    "mask_size": Kind(ERROR, "make the mask at the size of the image", True),
    "mask_binary": Kind(ERROR, "write classes as 0, 1, 2, ...: 255 is left out of training", True),
    "label": Kind(ERROR, "write classes as 0 (other) to the number of classes", True),
    "void_255": Kind(NOTE, "nothing; such pixels are left out, as those of 0 are"),
    "reduced": Kind(ERROR, "use the masks as published, 0 for other: 1 is subtracted on reading, and was before"),
    "all_void": Kind(NOTE, "nothing; nothing is learnt from it"),
    "absent_class": Kind(NOTE, "nothing, if a part of the set is meant; its IoU is not defined"),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """kind     of KINDS
    file     relative to the data's folder; that folder itself where it is of the whole set
    problem  in words
    drop     the file to leave out, where that is not `file`: the image of an annotation"""

    kind: str
    file: str
    problem: str
    drop: str = ""

    @property
    def error(self) -> bool:
        return KINDS[self.kind].weight == ERROR

    @property
    def single(self) -> str:
        """The file that the quarantine can leave out for it; empty where there is none."""
        return (self.drop or self.file) if KINDS[self.kind].single else ""

    def __str__(self) -> str:
        kind = KINDS[self.kind]
        fix = f"{kind.fix}, or quarantine {self.single}" if kind.single else kind.fix
        return f"{kind.weight} {self.kind}: {self.file}: {self.problem}; {fix}"


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first, then by kind as above and by file."""
    place = {kind: number for number, kind in enumerate(KINDS)}
    return sorted(findings, key=lambda f: (not f.error, place[f.kind], f.file, f.problem))


def grouped(findings: Iterable[Finding]) -> list[str]:
    """The first of each kind, a line each, and how many more there are."""
    groups: dict[str, list[Finding]] = {}
    for finding in ordered(findings):
        groups.setdefault(finding.kind, []).append(finding)
    lines = []
    for kind, group in groups.items():
        lines += [str(finding) for finding in group[:SHOWN]]
        if more := len(group) - SHOWN:
            lines += [f"{KINDS[kind].weight} {kind}: {more} more of {len(group)}"] if more > 0 else []
    return lines
