"""The ways in which a run can fail: what each is called, how it is told from the others, and whether it is tried again.

A run that was killed, crashed or hung goes on from its checkpoint, so another try costs little. One that ran out of memory,
diverged, met bad input or raised would do so again: it is never tried again by itself.
"""

import contextlib
import re
import signal
from pathlib import Path

from hypotheses import errors
from hypotheses.errors import CANNOT_WRITE, UserError, out_of_memory

RETRIES = {"killed": 2, "crash": 1, "hang": 1, "memory": 0, "nan": 0, "disk": 0, "input": 0, "code": 0}
MEANING = {
    "killed": "ended by a signal from outside",
    "crash": "ended by the system: a fault in compiled code",
    "hang": "without a heartbeat for too long, and ended by the sweep",
    "memory": "out of memory, of the device or of the machine",
    "nan": "its loss is no longer a number",
    "disk": "nothing can be written: full, or read-only",
    "input": "bad data or configuration",
    "code": "an exception",
}
BUSY, STOPPED = "busy", "stopped"  # no failures: another process is at it; it was asked to stop
CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE}

# what errors.py prints as the last line
SAYS = (
    (BUSY, r"^error: .*another process (is at this run now|has taken over)"),
    ("nan", r"^error: training diverged"),
    ("memory", r"^error: out of memory"),
    ("disk", r"^error: (cannot write|no disk space)"),
    ("input", r"^error: "),
    ("memory", r"DataLoader worker .* is killed by signal: Killed"),
    ("crash", r"DataLoader worker .* is killed by signal: (Segmentation fault|Bus error|Aborted)"),
    ("killed", r"DataLoader worker .* is killed by signal"),
    ("memory", r"OutOfMemoryError|\bMemoryError\b|can't allocate memory"),
)


def classify(returncode: int, log: str, ooms: int = 0) -> str:
    """The class of the failure of a process, by its exit code and what it has printed; `ooms` of the machine's processes were
    ended for memory meanwhile."""
    if returncode == errors.BUSY:
        return BUSY
    if -returncode in CRASHES:
        return "crash"
    if returncode == -signal.SIGKILL and ooms:
        return "memory"
    if returncode < 0:
        return "killed"
    if returncode in (130, 143, 138):
        return STOPPED
    for line in reversed(lines_of(log)[-40:]):
        for name, pattern in SAYS:
            if re.search(pattern, line):
                return name
    # a launcher of several processes says how one of them ended
    if found := re.search(r"^Root Cause.*?exitcode\s*:\s*(-?\d+)", log, re.S | re.M):
        return classify(int(found[1]), "", ooms)
    return "code"


def of(error: BaseException) -> str:
    """The class of an exception that ended a run."""
    if isinstance(error, UserError):
        return "input"
    if isinstance(error, FloatingPointError):
        return "nan"
    if out_of_memory(error):
        return "memory"
    return "disk" if isinstance(error, OSError) and error.errno in CANNOT_WRITE else "code"


def describe(returncode: int, log: str) -> str:
    """In a few words how a process failed: the signal, or the last line of what it has printed."""
    if returncode < 0:
        return f"killed by {signal.Signals(-returncode).name}"
    lines = lines_of(log)
    return lines[-1].removeprefix("error: ") if lines else f"exit code {returncode}"


def ooms() -> int:
    """How many processes the machine has ended for memory since it was started; 0 where it does not say."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def lines_of(text: str) -> list[str]:
    """The lines of a log that say something, a redrawn bar as its last state."""
    return [line for part in text.split("\n") if (line := part.rstrip("\r").rpartition("\r")[2].strip())]


def tail(log: Path, lines: int = 3, since: int = 0, bytes_read: int = 16384) -> list[str]:
    """The last lines of a log, of what was written to it from the byte `since` on."""
    try:
        with open(log, "rb") as file:
            file.seek(0, 2)
            file.seek(max(since, file.tell() - bytes_read))
            return lines_of(file.read().decode(errors="replace"))[-lines:]
    except OSError:
        return []
