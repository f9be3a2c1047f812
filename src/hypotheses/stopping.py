"""Being asked to stop: Ctrl-C, SIGTERM, or SIGUSR1, which a cluster sends before it takes a machine away.

In the middle of training the request waits for the end of the step, where a checkpoint is written, unless a validation follows. Anywhere
else it ends the process at once, and so does a second one. A cluster signals every process of a job, and each hands the request on to
those it has started: what arrives within SAME seconds is one request.
"""

import contextlib
import ctypes
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
SAME = 1.0  # seconds


class Stopped(SystemExit):
    """Raised where a request to stop is met. Its code is what a shell says of the signal: 130, 143 or 138."""

    def __init__(self, number: int):
        super().__init__(128 + number)


class State:
    number: int | None = None  # of the signal that asks
    waits: bool = False  # whether a step is under way, whose end will ask
    met: float = -math.inf  # when a request was met last


def requested() -> bool:
    return State.number is not None


def end_step() -> None:
    """Stop here if it was asked for. Raises Stopped."""
    if State.number is not None:
        raise Stopped(State.number)


def wait_for_step(waits: bool) -> None:
    """From now on a request waits for `end_step`, or no longer does."""
    if not waits:
        State.waits = False
        end_step()
    elif not State.waits:
        State.waits = True
        install()  # a library may have put its own handlers there


def install() -> None:
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, handle)


def handle(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGUSR1 and not State.waits:
        State.number = number  # a warning ahead of time: the next step meets it
        return
    if time.monotonic() - State.met < SAME:
        return
    State.met = time.monotonic()
    if State.waits and State.number is None:
        State.number = number
        os.write(2, b"\nstopping at the end of this step; again to stop at once\n")
        return
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Stopped(number)


def end_with_parent() -> None:
    """Let the system kill this process when the one that has started it ends: a launcher that is killed leaves none behind."""
    with contextlib.suppress(OSError, AttributeError):  # Linux has it
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)


def begin_worker(*_: object) -> None:
    """For a process that loads data: the one that trains decides about a request to stop, and its end, even a sudden one, ends this
    one too. A SIGTERM counts if that process has sent it, as multiprocessing does at its end to those that are left, and waits."""
    end_with_parent()
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # macOS does not tell who has sent a signal: there every SIGTERM counts
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=end_at_the_word_of, args=(os.getppid(),), daemon=True).start()


def end_at_the_word_of(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Inside, the signals are met as said above."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    State.number, State.waits, State.met = None, False, -math.inf
    install()
    try:
        yield
    finally:
        State.number, State.waits = None, False
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
