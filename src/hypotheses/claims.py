"""Who is at a run: so that two sweeps, on one machine or on several that share a folder, never do the same run at once.

outputs/<address>/claims/<n>.json is a claim; the highest number holds. A process claims by creating the next number, which only one
can do, and lets go by saying so in its file: no claim is ever removed while it is the highest, so nobody can take one that was taken
over in between. The claim of a dead process is free. Whether a process of this machine lives is asked of the system; one of
another machine has to touch its file every BEAT seconds. No clock is compared but the file system's own.
"""

import contextlib
import datetime
import functools
import json
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypotheses.errors import BUSY, BusyError
from hypotheses.record import write_aside

BEAT = 10.0  # seconds between two touches of a claim
SILENT = 120.0  # seconds without one after which a process of another machine is taken for dead
WATCHED = 3 * BEAT  # for so long a claim is watched whose time lies in the future


class TakenOverError(BusyError):
    """Another process has claimed what this one held: it was taken for dead."""


def place() -> str:
    """Where process numbers mean the same: this machine since its last start, and this container."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def born(pid: int) -> str | None:
    """When a process began, in the system's ticks; "" where the system does not say; None if there is no such process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass  # it is somebody else's, and lives
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]  # a zombie is dead
    return ""


def newest(folder: Path) -> tuple[int, dict[str, Any]]:
    """The highest claim of a folder: its number and what it says; 0 where there is none. One that cannot be read says nothing."""
    numbers = [int(file.stem) for file in (folder / "claims").glob("*.json") if file.stem.isdigit()]
    if not numbers:
        return 0, {}
    with contextlib.suppress(OSError, ValueError):
        said = json.loads(claim_file(folder, max(numbers)).read_text())
        return max(numbers), said if isinstance(said, dict) else {}
    return max(numbers), {}


def claim_file(folder: Path, number: int) -> Path:
    return folder / "claims" / f"{number:06d}.json"


def holder(folder: Path) -> dict[str, Any] | None:
    """What the claim of the living process that holds a folder says; None where it is free."""
    number, said = newest(folder)
    if not said or said.get("released"):
        return None
    since = born(said["pid"]) if said.get("place") == place() and isinstance(said.get("pid"), int) else ""
    alive = touched(claim_file(folder, number)) if since == "" else since is not None and since == said.get("born")
    return said if alive else None


def age(file: Path) -> float | None:
    """Seconds since a file was touched, by the clock of its file system, or where nothing can be written there by this machine's;
    None where there is none."""
    try:
        then = file.stat().st_mtime
    except OSError:
        return None
    with contextlib.suppress(OSError), tempfile.NamedTemporaryFile(dir=file.parent, prefix=".now") as probe:
        return os.stat(probe.name).st_mtime - then
    return time.time() - then


def touched(file: Path) -> bool:
    """Whether a file was touched in the last SILENT seconds, by the clock of its file system."""
    if (seconds := age(file)) is None:
        return False
    if seconds > -BEAT:
        return seconds < SILENT
    try:
        then = file.stat().st_mtime
        end = time.monotonic() + WATCHED  # that clock was set back: see whether it is touched still
        while time.monotonic() < end:
            time.sleep(min(1.0, WATCHED / 10))
            if file.stat().st_mtime != then:
                return True
    except OSError:
        pass
    return False


@functools.cache
def me() -> dict[str, Any]:
    return {"host": socket.gethostname(), "place": place(), "pid": os.getpid(), "born": born(os.getpid())}


class Claim:
    """A folder that this process holds."""

    def __init__(self, folder: Path, number: int):
        self.folder, self.number, self.done = folder, number, threading.Event()
        self.file = claim_file(folder, number)
        self.thread = threading.Thread(target=self.beat, daemon=True)
        self.thread.start()

    def beat(self) -> None:
        while not self.done.wait(BEAT):
            try:
                os.utime(self.file)
                lost = not self.holds()
            except OSError:  # of a file system that is away for a moment: the next beat asks again
                continue
            if lost:
                print(f"error: {self.folder}: another process has taken over, so this one ends", file=sys.stderr)
                os._exit(BUSY)

    def holds(self) -> bool:
        return newest(self.folder)[0] == self.number

    def check(self) -> None:
        """Raise TakenOverError where it is held no more: ask before what must be written by one process alone."""
        if not self.holds():
            raise TakenOverError(f"{self.folder}: another process has taken over")

    def release(self) -> None:
        self.done.set()
        with contextlib.suppress(OSError):  # of a dead process it is free anyway
            if self.holds():
                write_aside(self.file, json.dumps(me() | {"released": True}) + "\n")


def claim(folder: Path, what: str = "run") -> Claim:
    """Hold a folder. Raises BusyError where a living process holds it."""
    (folder / "claims").mkdir(parents=True, exist_ok=True)
    me.cache_clear()  # the process may have been forked
    while True:
        number, _ = newest(folder)
        if said := holder(folder):
            raise BusyError(
                f"{folder}: another process is at this {what} now (process {said.get('pid')} on {said.get('host')}); wait for it or stop it"
            )
        since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        target = claim_file(folder, number + 1)
        if not created(target, json.dumps(me() | {"since": since}) + "\n"):
            continue  # somebody was faster
        if newest(folder)[0] != number + 1:  # this process was asleep, and others have come and gone
            target.unlink(missing_ok=True)
            continue
        for old in range(max(1, number - 3), number):  # lower ones mean nothing
            claim_file(folder, old).unlink(missing_ok=True)
        return Claim(folder, number + 1)


def created(target: Path, content: str) -> bool:
    """Create a file with its content at once; False where it is there."""
    with tempfile.NamedTemporaryFile("w", dir=target.parent, prefix=".claim") as file:
        file.write(content)
        file.flush()
        try:
            os.link(file.name, target)
        except FileExistsError:
            return False
    return True


@contextlib.contextmanager
def held(folder: Path, what: str = "run") -> Iterator[Claim]:
    """Hold a folder meanwhile."""
    mine = claim(folder, what)
    try:
        yield mine
    finally:
        mine.release()
