"""Every beginning and end of a run, so that what failed on the way to a record is told with it.

results/attempts/<address>.jsonl gets a line when a run begins and one when it ends: recorded, interrupted or failed. A beginning
without an end was killed. Lines are only added.
"""

import contextlib
import datetime
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RECORDED, INTERRUPTED, UNENDED = "recorded", "interrupted", "no end noted: killed, or still running"


def path(results: Path, address: str) -> Path:
    return results / "attempts" / f"{address}.jsonl"


@contextlib.contextmanager
def noted(results: Path, address: str, code: str) -> Iterator[None]:
    """Note that a run of this code begins, and how it ends."""
    file = path(results, address)
    file.parent.mkdir(parents=True, exist_ok=True)
    add(file, begun=now(), code=code)
    try:
        yield
    except BaseException as error:
        how = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        with contextlib.suppress(OSError):  # a full disk is what ended it
            add(file, ended=now(), how=INTERRUPTED if isinstance(error, KeyboardInterrupt | SystemExit) else how)
        raise
    add(file, ended=now(), how=RECORDED)


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def add(file: Path, **line: Any) -> None:
    """Add a line, whole or not at all."""
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, (json.dumps(line) + "\n").encode())
    finally:
        os.close(descriptor)


def read(results: Path, address: str) -> list[str]:
    """How each attempt at a run has ended so far, in order."""
    found: list[str] = []
    with contextlib.suppress(FileNotFoundError):
        for text in path(results, address).read_text().splitlines():
            line: dict[str, str] = {}
            with contextlib.suppress(ValueError):  # a line that a full disk has cut short
                line = json.loads(text)
            if "begun" in line:
                found.append(UNENDED)
            elif "how" in line and found:
                found[-1] = line["how"]
    return found
