"""The images of a classification data set, in whichever layout it is kept:

folders  train/<class>/<image> and val/<class>/<image>, as torchvision reads them
shards   tar files as webdataset writes them, *train*.tar and *val*.tar, in one folder or in train/ and val/: of a sample KEY.jpg is the
         image and KEY.cls its label
tables   Hugging Face's: train-*.parquet and val*-*.parquet, in one folder or in data/, or what `DatasetDict.save_to_disk` writes; columns
         `image` and `label`

Each is read by number, so that the order of the images is ours whatever the layout. Nothing here decodes an image or imports torch.
"""

import contextlib
import functools
import hashlib
import importlib.util
import io
import os
import tarfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hypotheses.data import folder
from hypotheses.errors import UserError
from hypotheses.record import write_aside

WORDS = {"train": ("train",), "val": ("val", "validation")}  # of a split, in names of files and folders
IMAGES = ("jpg", "jpeg", "png", "webp")  # endings in a shard


class Source(Protocol):
    """A split: `labels` (images,) int64, and by an image's number the bytes of its file and where it is: a path, or in the place of one
    FILE.tar:OFFSET:SIZE or SPLIT:ROW."""

    labels: np.ndarray

    def read(self, index: int) -> bytes: ...
    def name(self, index: int) -> str: ...
    def state(self, index: int) -> tuple[int, int]:
        """Two numbers that change with the file that an image is in: its size and time of change."""
        ...


class Folders:
    def __init__(self, samples: Sequence[tuple[str, int]]):
        # arrays: of a million Python strings each process that loads data would soon have its own, as it counts references to them
        self.paths = np.array([os.fsencode(path) for path, _ in samples])
        self.labels = np.array([label for _, label in samples], np.int64)

    def read(self, index: int) -> bytes:
        return from_file(self.name(index))

    def name(self, index: int) -> str:
        return os.fsdecode(self.paths[index])

    def state(self, index: int) -> tuple[int, int]:
        return state_of(Path(self.name(index)))


class Shards:
    """Tar files; `places` (images, 3) int64 says where in them each image lies: number of the file, offset and size in bytes."""

    def __init__(self, files: Sequence[Path], places: np.ndarray, labels: np.ndarray):
        self.files, self.places, self.labels = list(files), places, labels
        self.states = [state_of(file) for file in files]

    def keep(self, which: np.ndarray) -> None:
        self.places, self.labels = self.places[which], self.labels[which]

    def read(self, index: int) -> bytes:
        return from_shard(self.name(index))

    def name(self, index: int) -> str:
        number, offset, size = self.places[index]
        return f"{self.files[number]}:{offset}:{size}"

    def state(self, index: int) -> tuple[int, int]:
        return self.states[self.places[index, 0]]


class Tables:
    """Rows of a Hugging Face data set of those files, mapped into memory; `rows` (images,) are those that are used."""

    def __init__(self, table: Any, where: Path, files: Sequence[Path], rows: np.ndarray, labels: np.ndarray):
        self.table, self.where, self.rows, self.labels = table, where, rows, labels
        states = repr(
            [(file.name, *state_of(file)) for file in files]
        ).encode()  # a row's number depends on all of them
        self.all_states = (len(files), int.from_bytes(hashlib.sha256(states).digest()[:7], "big"))

    def keep(self, which: np.ndarray) -> None:
        self.rows, self.labels = self.rows[which], self.labels[which]

    def read(self, index: int) -> bytes:
        return from_table(self.table, self.name(index))

    def name(self, index: int) -> str:
        return f"{self.where}:{self.rows[index]}"

    def state(self, index: int) -> tuple[int, int]:
        return self.all_states


def reader(source: Source) -> Callable[[str], bytes]:
    """For other processes, which have not all of a source: an image's bytes by its name."""
    if isinstance(source, Tables):
        return functools.partial(from_table, source.table)
    return from_shard if isinstance(source, Shards) else from_file


def state_of(file: Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns


def from_file(name: str) -> bytes:
    return Path(name).read_bytes()


def from_shard(name: str) -> bytes:
    file, offset, size = name.rsplit(":", 2)
    with open(file, "rb") as shard:
        return os.pread(shard.fileno(), int(size), int(offset))


def from_table(table: Any, name: str) -> bytes:
    image = table[int(name.rpartition(":")[2])]["image"]
    return image["bytes"] or Path(image["path"]).read_bytes()


# ---- finding and opening ---------------------------------------------------------------------------------------------


def files(root: Path, split: str, pattern: str) -> list[Path]:
    """Those of a split, whose name or folder says which it is."""
    for word in WORDS[split]:
        for found in (
            root.glob(f"*{word}*{pattern}"),
            (root / word).glob(f"*{pattern}"),
            root.glob(f"data/{word}-*{pattern}"),
        ):
            if listed := sorted(found):
                return listed
    return []


def layout(root: Path) -> str:
    """ "folders" wherever there are any of classes, whatever archives lie beside them."""
    if any(entry.is_dir() for split in WORDS if (root / split).is_dir() for entry in os.scandir(root / split)):
        return "folders"
    if (root / "dataset_dict.json").is_file():
        return "saved tables"
    kinds = {".tar": "shards", ".parquet": "tables"}
    return next((kind for ending, kind in kinds.items() if any(files(root, s, ending) for s in WORDS)), "folders")


def check(
    root: Path,
    num_classes: int,
    class_list: str | None,
    splits: tuple[str, ...],
    cache: Path,
    left_out: Collection[str] = (),
) -> tuple[tuple[str, ...], str]:
    """The class names and the fingerprint (names and sizes of all files) of a data set, checked; arguments as in `folder.check`.

    cache  a folder for what is worked out once: the indices of tar files, tables of parquet files

    Raises UserError where a split or a class is missing or empty, or the number of classes is not `num_classes`."""
    kind = layout(root)
    if kind == "folders":
        return folder.check(root, num_classes, class_list, splits, left_out)
    classes = wanted(class_list) if class_list else class_names(num_classes)
    digest = hashlib.sha256(kind.encode())
    for split in splits:
        source = load(root, split, classes, cache, left_out)
        counts = np.bincount(source.labels, minlength=len(classes))
        if len(counts) != num_classes or 0 in counts:
            problem = f"{np.count_nonzero(counts)} of {max(len(counts), num_classes)} labels have images"
            raise UserError(f"{root}, {split}: {problem}, but recipe.num_classes={num_classes}: set one to the other")
        for path in of_split(root, split, kind):
            digest.update(f"{split}/{path.name} {path.stat().st_size}\n".encode())
        digest.update(source.labels.tobytes())  # which lie inside of the files
    return classes, digest.hexdigest()


def wanted(class_list: str) -> tuple[str, ...]:
    return tuple(sorted((Path(__file__).parent / class_list).read_text().split()))


def class_names(num_classes: int) -> tuple[str, ...]:
    """Of labels that are only numbers: ImageNet-1K's synsets, which are numbered in their order; the numbers themselves of others."""
    return synsets() if num_classes == 1000 else tuple(f"{label:03d}" for label in range(num_classes))


def synsets() -> tuple[str, ...]:
    (place,) = importlib.util.find_spec("timm").submodule_search_locations  # type: ignore[union-attr,misc]
    return tuple(Path(place, "data/_info/imagenet_synsets.txt").read_text().split())


def of_split(root: Path, split: str, kind: str) -> list[Path]:
    """The files of a split in a layout other than folders. Raises UserError where there are none."""
    if kind == "saved tables":
        found = [f for word in WORDS[split] for f in sorted((root / word).glob("*.arrow"))]
    else:
        found = files(root, split, {"shards": ".tar", "tables": ".parquet"}[kind])
    if not found:
        words = " or ".join(WORDS[split])
        raise UserError(
            f"{root} has {kind} of another split, but none with {words} in its name: add them, or set paths.imagenet=FOLDER"
        )
    return found


def load(root: Path, split: str, classes: Sequence[str], cache: Path, left_out: Collection[str] = ()) -> Source:
    """The images of a split that are of `classes`, whose numbers in that order are the labels, but those that are left out."""
    kind = layout(root)
    if kind == "folders":
        return Folders(folder.list_images(root, split, classes, left_out))
    source = everything(root, split, kind, classes, cache)
    if left_out:
        names = {f"{root}/{name}" for name in left_out}
        source.keep(np.array([source.name(i) not in names for i in range(len(source.labels))], bool))
    return source


def everything(root: Path, split: str, kind: str, classes: Sequence[str], cache: Path) -> "Shards | Tables":
    found = of_split(root, split, kind)
    if kind == "shards":
        each = [index(file, cache) for file in found]
        places = np.concatenate([np.insert(part[:, :2], 0, n, axis=1) for n, part in enumerate(each)])
        labels = np.concatenate([part[:, 2] for part in each])
        kept, labels = relabel(checked(labels, root), classes)
        return Shards(found, places[kept], labels)
    table, where = read_tables(root, found, kind, cache), root / split
    if not {"image", "label"} <= set(table.column_names):
        raise UserError(
            f"{where} has the columns {', '.join(table.column_names)}: `image` and `label` are needed, rename them"
        )
    import datasets

    labels = np.asarray(table.with_format("numpy")["label"], np.int64)
    table = table.select_columns(["image"]).cast_column("image", datasets.Image(decode=False))
    kept, labels = relabel(checked(labels, where), classes)
    return Tables(table, where, found, kept, labels)


def checked(labels: np.ndarray, where: Path) -> np.ndarray:
    if labels.size and labels.min() < 0:
        raise UserError(
            f"{where} has images of label {labels.min()}, as sets without labels have: take a set with them"
        )
    return labels


def relabel(labels: np.ndarray, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the images that are of `classes`, in their order, and their labels in that list: where it names some of ImageNet's
    synsets, the labels are taken for numbers of all of them."""
    if len(classes) == 1000 or not set(classes) <= set(synsets()):
        return np.arange(len(labels)), labels
    number = {name: label for label, name in enumerate(synsets())}
    table = np.full(max(1000, labels.max(initial=0) + 1), -1)
    table[[number[name] for name in classes]] = np.arange(len(classes))
    kept = np.flatnonzero(table[labels] >= 0)
    return kept, table[labels[kept]]


def index(file: Path, cache: Path) -> np.ndarray:
    """(images, 3) int64: offset, size and label of each image in a tar file, in its order; worked out once.

    Raises UserError where the file is cut short, or an image has no label."""
    state = file.stat()
    key = hashlib.sha256(f"{file.resolve()} {state.st_size} {state.st_mtime_ns}".encode()).hexdigest()[:24]
    kept = cache / f"{key}.npy"
    if kept.exists():
        return np.load(kept)
    places: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    samples: list[tuple[str, str]] = []
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                where, _, name = member.name.rpartition("/")
                base, _, ending = name.partition(".")
                sample = f"{where}/{base}".lstrip("/")
                kind = "image" if ending.lower() in IMAGES else ending
                samples.append((sample, kind))
                if kind == "image":
                    places[sample] = (member.offset_data, member.size)
                elif kind == "cls":
                    labels[sample] = int(tar.extractfile(member).read())  # type: ignore[union-attr]
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise UserError(f"{file} cannot be read as a tar file of images ({error}): mend or replace it") from error
    if odd := sorted({sample for sample, _ in samples} - (places.keys() & labels.keys())):
        raise UserError(
            f"{file}: {len(odd)} samples have not both an image ({', '.join(IMAGES)}) and a .cls file, {odd[0]} first: mend or replace it"
        )
    if len(samples) != len(set(samples)):
        twice = next(sample for sample, kind in samples if samples.count((sample, kind)) > 1)
        raise UserError(f"{file}: the sample {twice} is in it twice, or with two images: mend or replace it")
    found = np.array([(*places[sample], labels[sample]) for sample in places], np.int64).reshape(-1, 3)
    content = io.BytesIO()
    np.save(content, found)
    with contextlib.suppress(OSError):  # it is worked out again then
        write_aside(kept, content.getvalue())
    return found


def read_tables(root: Path, found: list[Path], kind: str, cache: Path) -> Any:
    """A Hugging Face data set of these files. Parquet cannot be read by number, so it is written once as a table that can:
    as much space again."""
    import datasets

    datasets.disable_progress_bars()
    try:
        if kind == "saved tables":
            return datasets.load_from_disk(str(found[0].parent))
        names = [str(file) for file in found]
        return datasets.load_dataset("parquet", data_files=names, split="train", cache_dir=str(cache))
    except Exception as error:  # its own and pyarrow's have no common class
        raise UserError(
            f"{root}: the tables cannot be read ({str(error).splitlines()[0]}): mend or replace them"
        ) from error
