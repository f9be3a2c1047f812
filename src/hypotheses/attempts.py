"""Every beginning and end of a run, so that what failed on the way to a record is told with it.

results/attempts/<address>.jsonl gets a line when a run begins and one when it ends: recorded, interrupted or failed. A beginning
without an end was killed. Lines are only added.
"""

import contextlib
import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypotheses import failures

RECORDED, INTERRUPTED, UNENDED = "recorded", "interrupted", "no end noted: killed, or still running"


def path(results: Path, address: str) -> Path:
    return results / "attempts" / f"{address}.jsonl"


@contextlib.contextmanager
def noted(results: Path, address: str) -> Iterator[None]:
    """Note that a run begins, and how it ends."""
    file = path(results, address)
    add(file, begun=now())
    try:
        yield
    except BaseException as error:
        how = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        with contextlib.suppress(OSError):  # a full disk is what ended it
            asked = isinstance(error, KeyboardInterrupt | SystemExit)
            add(file, ended=now(), how=INTERRUPTED if asked else how, failure="" if asked else failures.of(error))
        raise
    add(file, ended=now(), how=RECORDED)


def note_end(results: Path, address: str, how: str, failure: str) -> None:
    """Note how the latest attempt ended, for a process that could not say so itself."""
    if read(results, address)[-1:] == [UNENDED]:
        add(path(results, address), ended=now(), how=how, failure=failure)


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def add(file: Path, **line: Any) -> None:
    """Add a line, on a line of its own even where a full disk has cut the one before it short."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "ab+") as lines:
        lines.seek(max(0, lines.tell() - 1))
        cut = lines.read(1) not in (b"", b"\n")
        lines.write(b"\n" * cut + json.dumps(line).encode() + b"\n")


def read(results: Path, address: str) -> list[str]:
    """How each attempt at a run has ended so far, in order."""
    return [how for how, _ in ends(results, address)]


def ends(results: Path, address: str) -> list[tuple[str, str]]:
    """How each attempt has ended, with the class of a failure as in failures.py."""
    found: list[tuple[str, str]] = []
    with contextlib.suppress(FileNotFoundError):
        for text in path(results, address).read_text(errors="replace").splitlines():
            line: Any = None
            with contextlib.suppress(ValueError):
                line = json.loads(text)
            if not isinstance(line, dict):
                continue
            if "begun" in line:
                found.append((UNENDED, ""))
            elif "how" in line and found:
                found[-1] = str(line["how"]), str(line.get("failure", ""))
    return found
