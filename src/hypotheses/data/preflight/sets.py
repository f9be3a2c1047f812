"""A data set as its check sees it: all files of its layout with size and time of change, and what is wrong with images of any set."""

import collections
import dataclasses
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from hypotheses.data.preflight.files import Cache, Facts, Stat, look_at_all
from hypotheses.data.preflight.findings import Finding
from hypotheses.data.sources import Source, reader

COUNTS = {  # of images, as published
    "imagenet": {"train": 1_281_167, "val": 50_000},
    "coco": {"train": 118_287, "val": 5_000},
    "ade20k": {"train": 20_210, "val": 2_000},
}
ANNOTATIONS = {"train": 860_001, "val": 36_781}  # of COCO 2017
TINY, SMALL = 8, 32  # pixels of the shorter side; 32 is mmdet's filter_cfg.min_size
HUGE = 89_478_485  # pixels from which on PIL warns; from twice as many it refuses
FORMATS = {
    ".jpeg": ("JPEG", "MPO"),
    ".jpg": ("JPEG", "MPO"),
    ".png": ("PNG",),
}  # MPO: JPEG with a second image behind it
BY_OPENCV = ("JPEG", "MPO", "PNG", "BMP", "TIFF", "WEBP")  # which reads the images of mmdet and mmsegmentation
MANY = 0.01  # share from which on what happens now and then is a mistake
SAMPLE = 200  # files that the speed of reading is measured on


@dataclasses.dataclass
class DataSet:
    """layout      "imagenet", "coco" or "ade20k"
    root          its folder
    splits        that are looked at
    classes       of COCO by name in their order; of ImageNet those that are used, None for all that are there
    num_classes   of the recipe
    counts        of images by split, where they are known
    annotations   of COCO by split, where they are known
    option        of the command line that says where the set is
    files         of the layout, relative to root; None where one cannot be looked at
    folders       of the layout, relative to root
    packs         how the names of images inside of its tar files or tables begin
    decoded       files that had to be decoded, of all so far
    """

    layout: str
    root: Path
    splits: tuple[str, ...]
    classes: tuple[str, ...] | None
    num_classes: int
    counts: Mapping[str, int]
    annotations: Mapping[str, int]
    option: str
    cache: Cache
    index: Path
    processes: int | None
    files: dict[str, Stat | None] = dataclasses.field(default_factory=dict)
    folders: set[str] = dataclasses.field(default_factory=set)
    packs: set[str] = dataclasses.field(default_factory=set)
    decoded: int = 0

    def walk(self, folder: str) -> None:
        """Take in a folder and all below it, those of classes that are not used excepted."""
        top = self.root / folder
        for place, below, names in os.walk(top, followlinks=True):
            here = Path(place)
            if here == top and self.layout == "imagenet" and self.classes is not None:
                below[:] = [name for name in below if name in self.classes]
            self.folders.add(here.relative_to(self.root).as_posix())
            for name in names:
                self.add(here / name)

    def add(self, file: Path) -> None:
        name = file.relative_to(self.root).as_posix()
        try:
            stat = file.stat()
            self.files[name] = (stat.st_size, stat.st_mtime_ns)
        except FileNotFoundError:
            if file.is_symlink():
                self.files[name] = None
        except OSError:
            self.files[name] = None

    def digest(self) -> str:
        """Changes when a file does, or what is asked of them."""
        asked = (self.splits, self.classes, self.num_classes, self.counts, self.annotations)
        digest = hashlib.sha256(repr(asked).encode())
        for name in sorted(self.files):
            digest.update(f"{name} {self.files[name]}\n".encode())
        for name in sorted(self.folders):
            digest.update(f"{name}\n".encode())
        return digest.hexdigest()

    def inside(self, folder: str) -> list[str]:
        """The files of a folder itself, sorted."""
        return sorted(name for name in self.files if name.rpartition("/")[0] == folder)

    def look(self, names: Iterable[str], mask: bool = False) -> dict[str, Facts]:
        """What is known of files after each was decoded, now or before."""
        paths = {str(self.root / name): name for name in names}
        there = {path: stat for path, name in paths.items() if (stat := self.files[name])}
        found, number = look_at_all(there, mask, self.cache, self.processes)
        self.decoded += number
        gone = Facts(problem="unreadable", text="No such file or directory")
        return {name: found.get(path, gone) for path, name in paths.items()}

    def look_in(self, source: Source) -> dict[str, Facts]:
        """The same of the images inside of tar files or tables."""
        there = {source.name(i): source.state(i) for i in range(len(source.labels))}
        found, number = look_at_all(there, False, self.cache, self.processes, reader(source))
        self.decoded += number
        return {os.path.relpath(name, self.root): facts for name, facts in found.items()}

    def speed(self, names: list[str]) -> Iterator[Finding]:
        """How fast files spread over the set are read."""
        sample = names[:: max(1, len(names) // SAMPLE)][:SAMPLE]
        start, size = time.perf_counter(), 0
        for name in sample:
            try:
                size += len((self.root / name).read_bytes())
            except OSError:
                continue  # a finding of its own
        if sample and size:
            seconds = time.perf_counter() - start
            yield Finding(
                "speed",
                str(self.root),
                f"read at {size / seconds / 1e6:.0f} MB/s, {len(sample) / seconds:.0f} images/s (n = {len(sample)}, without "
                "decoding; what was read before may come from memory)",
            )

    def missing(self, name: str, what: str) -> Finding:
        return Finding("missing", name, f"there is no such {what} in {self.root} ({self.option}=FOLDER says where)")

    def count(self, split: str, folder: str, number: int) -> Iterator[Finding]:
        wanted = self.counts.get(split, number)
        if number != wanted:
            yield Finding("count", folder, f"has {number:,} images, the whole set {wanted:,}")


def images(found: Mapping[str, Facts], dense: bool) -> Iterator[Finding]:
    """What is wrong with images, or worth saying. `dense`: of mmdet and mmsegmentation, which read them with OpenCV."""
    for name, facts in found.items():
        if facts.problem:
            yield Finding(facts.problem, name, facts.text)
            continue
        suffix, side = PurePosixPath(name).suffix.lower(), min(facts.width, facts.height)
        size = f"{facts.width} x {facts.height} pixels"
        if side < TINY:
            yield Finding("tiny", name, f"has {size}, fewer than {TINY} along a side")
        elif side < SMALL and dense:
            yield Finding("small", name, f"has {size}, fewer than {SMALL} along a side")
        if facts.width * facts.height > HUGE:
            yield Finding("huge", name, f"has {size}")
        if dense and facts.format not in BY_OPENCV:
            yield Finding("format", name, f"is {facts.format}, which OpenCV does not read")
        elif facts.format not in FORMATS.get(suffix, (facts.format,)):  # inside of a tar file or table it has no name
            yield Finding("misnamed", name, f"is {facts.format}, not {FORMATS[suffix][0]} as its name says")
        if facts.mode.startswith(("I", "F")):
            yield Finding("deep", name, f"has more than 8 bits a channel (PIL's mode {facts.mode}), which are cut off")
        elif facts.mode == "CMYK":
            yield Finding("cmyk", name, "is CMYK")
        elif facts.alpha:
            yield Finding("alpha", name, f"has transparency (PIL's mode {facts.mode})")
        elif facts.mode == "P":
            yield Finding("palette", name, "has a palette")
        if facts.orientation == 0:
            yield Finding("bad_exif", name, "has EXIF data that cannot be read")
        elif facts.orientation != 1:
            how = "turned or mirrored on reading" if dense else "not turned on reading"
            yield Finding("exif", name, f"has EXIF orientation {facts.orientation}: {how}")


def as_read(facts: Facts) -> tuple[int, int]:
    """Width and height of an image as OpenCV gives it, which turns it as EXIF says."""
    return (facts.height, facts.width) if facts.orientation >= 5 else (facts.width, facts.height)


def overlap(train: Mapping[str, Facts], val: Mapping[str, Facts]) -> Iterator[Finding]:
    """Images of the validation that are trained on: files of the same bytes."""
    trained = {facts.sha256: name for name, facts in train.items() if facts.sha256 and not facts.problem}
    both = {name: trained[facts.sha256] for name, facts in val.items() if facts.sha256 in trained}
    kind = "overlap_many" if len(both) > MANY * len(val) else "overlap"
    for name, other in both.items():
        yield Finding(kind, name, f"has the bytes of {other}")


def names_once(names: Iterable[str], say: Callable[[str, int], Finding]) -> Iterator[Finding]:
    """A finding for each name that is there more than once."""
    for name, number in collections.Counter(names).items():
        if number > 1:
            yield say(name, number)
