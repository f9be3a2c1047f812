"""Image files, each read and decoded whole, by several processes. What is found is kept in a database by path, size and time of
change, so that a second look costs a stat per file."""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
import sqlite3
import time
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from hypotheses import record, stopping
from hypotheses.data.sources import from_file
from hypotheses.errors import UserError

CHUNK = 32  # files that a process is given at a time
ALONE = 200  # files up to which it is quicker to start no processes
KEEP = 1.0  # seconds between what is written to the database
ORIENTATION = 0x0112  # EXIF

Stat = tuple[int, int]  # size in bytes, time of change in ns
Reader = Callable[[str], bytes]  # of a file by its path


@dataclasses.dataclass(frozen=True, slots=True)
class Facts:
    """Of an image file.

    sha256       of its bytes
    problem      the kind of finding that makes it useless, and in `text` what was said; empty for none
    format, mode as PIL names them
    orientation  EXIF's, 1 for none; 0 where it cannot be read
    alpha        whether it has transparency
    labels       the values of a mask's pixels, ascending
    """

    sha256: str = ""
    problem: str = ""
    text: str = ""
    format: str = ""
    mode: str = ""
    width: int = 0
    height: int = 0
    orientation: int = 1
    alpha: bool = False
    labels: tuple[int, ...] = ()


def look(path: str, mask: bool, read: Reader = from_file) -> Facts:
    """Read and decode one file."""
    try:
        content = read(path)
    except OSError as error:
        return Facts(problem="unreadable", text=error.strerror or str(error))
    digest = hashlib.sha256(content).hexdigest()
    if not content:
        return Facts(digest, "empty_file", "has no bytes")
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of EXIF and of large images, which are looked at below
            with Image.open(io.BytesIO(content)) as image:
                image.load()
                return Facts(
                    digest,
                    format=image.format or "",
                    mode=image.mode,
                    width=image.width,
                    height=image.height,
                    orientation=orientation(image),
                    alpha=image.has_transparency_data,
                    labels=labels(image) if mask else (),
                )
    except Image.DecompressionBombError as error:
        return Facts(digest, "bomb", str(error))
    except MemoryError:
        raise
    except Exception as error:  # each decoder has its own
        said = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            return Facts(digest, *unidentified(content))
        cut = "truncated" in said.lower()
        return Facts(digest, "truncated" if cut else "undecodable", said)


def orientation(image: Any) -> int:
    try:
        found = image.getexif().get(ORIENTATION, 1)
        return found if isinstance(found, int) and 1 <= found <= 8 else 0
    except Exception:  # what a broken header leads to is not documented
        return 0


def labels(image: Any) -> tuple[int, ...]:
    import numpy as np

    array = np.asarray(image)
    return tuple(int(value) for value in np.unique(array)[:1000]) if array.ndim == 2 else ()


def unidentified(content: bytes) -> tuple[str, str]:
    start = content[:512].lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "text", "is a web page, no image"
    if start.startswith(b"version https://git-lfs"):
        return "text", "is a pointer of Git LFS, no image"
    try:
        start.decode("ascii")
        return "text", "is text, no image"
    except UnicodeDecodeError:
        return "undecodable", "is in no format of images that is known"


# ---- the database ----------------------------------------------------------------------------------------------------


def version() -> str:
    """Of what is found: other code or another decoder looks again."""
    import PIL

    return hashlib.sha256(record.substance(Path(__file__).read_bytes()) + PIL.__version__.encode()).hexdigest()[:16]


class Cache:
    """What was found before. Where its file cannot be used, that is said in `trouble`, and nothing is kept."""

    def __init__(self, folder: Path):
        self.file, self.trouble, self.version = folder / "files.sqlite", "", version()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.connection = self.connect(str(self.file))
        except (OSError, sqlite3.Error) as error:
            self.give_up(error)

    def connect(self, place: str) -> sqlite3.Connection:
        connection = sqlite3.connect(place, timeout=120)  # another check may be writing
        with connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS files (path TEXT, mask INTEGER, size INTEGER, changed INTEGER, version TEXT, "
                "facts TEXT, PRIMARY KEY (path, mask))"
            )
            connection.execute("CREATE TABLE IF NOT EXISTS sets (name TEXT PRIMARY KEY, digest TEXT, findings TEXT)")
            connection.execute("DELETE FROM sets WHERE name = ''")  # whether it can be written to
        return connection

    def give_up(self, error: Exception) -> None:
        self.trouble = f"what is found cannot be kept ({error})"
        self.connection = self.connect(":memory:")

    def find(self, path: str, mask: bool, stat: Stat) -> Facts | None:
        row = self.connection.execute(
            "SELECT facts FROM files WHERE path = ? AND mask = ? AND size = ? AND changed = ? AND version = ?",
            (path, mask, *stat, self.version),
        ).fetchone()
        if not row:
            return None
        values = json.loads(row[0])
        values[-1] = tuple(values[-1])
        return Facts(*values)

    def keep(self, mask: bool, found: Sequence[tuple[str, Stat, Facts]]) -> None:
        rows = [
            (path, mask, *stat, self.version, json.dumps(dataclasses.astuple(facts)))
            for path, stat, facts in found
            if facts.problem != "unreadable"  # rights change without the file
        ]
        self.write("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?)", rows)

    def find_set(self, name: str, digest: str) -> str | None:
        row = self.connection.execute("SELECT findings FROM sets WHERE name = ? AND digest = ?", (name, digest))
        return next((found for (found,) in row), None)

    def keep_set(self, name: str, digest: str, findings: str) -> None:
        self.write("INSERT OR REPLACE INTO sets VALUES (?, ?, ?)", [(name, digest, findings)])

    def write(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        try:
            with self.connection:
                self.connection.executemany(statement, rows)
        except sqlite3.Error as error:
            self.give_up(error)


# ---- many files ------------------------------------------------------------------------------------------------------


def look_at_all(
    files: Mapping[str, Stat], mask: bool, cache: Cache, processes: int | None, read: Reader = from_file
) -> tuple[dict[str, Facts], int]:
    """What is known of each file (by its path), and how many had to be decoded for it. What was found until Ctrl-C is kept."""
    from tqdm import tqdm

    known = {path: facts for path, stat in files.items() if (facts := cache.find(path, mask, stat))}
    missing = [path for path in files if path not in known]
    waiting: list[tuple[str, Stat, Facts]] = []
    kept, what = time.monotonic(), "masks" if mask else "images"
    bar = tqdm(
        total=len(missing), desc=f"checking {what}", unit=f" {what}", leave=False, disable=None, dynamic_ncols=True
    )
    try:
        with bar, contextlib.closing(decoded(missing, mask, processes, read)) as chunks:
            for chunk in chunks:
                known |= dict(chunk)
                waiting += [(path, files[path], facts) for path, facts in chunk]
                bar.update(len(chunk))
                if time.monotonic() - kept > KEEP:
                    cache.keep(mask, waiting)
                    waiting, kept = [], time.monotonic()
    finally:
        cache.keep(mask, waiting)
    return known, len(missing)


def decoded(
    paths: Sequence[str], mask: bool, processes: int | None, read: Reader
) -> Generator[list[tuple[str, Facts]], None, None]:
    """Some files at a time, in any order, as they become ready. `processes`: None for one per core, 0 for none but this one."""
    chunks = [paths[start : start + CHUNK] for start in range(0, len(paths), CHUNK)]
    if processes is None:
        processes = len(os.sched_getaffinity(0)) if len(paths) > ALONE else 0
    if not processes:
        yield from (look_at_some(chunk, mask, read) for chunk in chunks)
        return
    context = multiprocessing.get_context("spawn")  # torch may have threads here
    pool = concurrent.futures.ProcessPoolExecutor(processes, context, initializer=stopping.begin_worker)
    try:
        for future in concurrent.futures.as_completed(
            {pool.submit(look_at_some, chunk, mask, read) for chunk in chunks}
        ):
            yield future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a process that decodes images was ended by the system (too little memory, or a fault of the decoder): try again with "
            "hardware.workers=0, which goes on behind what was decoded"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def look_at_some(paths: Sequence[str], mask: bool, read: Reader) -> list[tuple[str, Facts]]:
    return [(path, look(path, mask, read)) for path in paths]
