"""Mistakes of the user: one clear line that names the fix, exit code 2, never a traceback."""

import argparse
import contextlib
import difflib
import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn

MOST = 12  # names that an error lists
BUSY = 75  # exit code where another process is at what was asked for
CANNOT_WRITE = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT, errno.ENOTDIR, errno.EEXIST)


def command(main: Callable[[], int], interrupted: str = "") -> NoReturn:
    """Do what a person has typed, and end the process with what `main` returns; 130 after Ctrl-C, with `interrupted` said."""
    with one_line():
        try:
            sys.exit(main())
        except KeyboardInterrupt:
            if interrupted:
                print(interrupted, file=sys.stderr)
            sys.exit(130)
    raise AssertionError("sys.exit returned")


class UserError(Exception):
    """Something that the user can put right; its text is one line and says how."""


class BusyError(UserError):
    """Another process is at it now. Exit code 75."""


class Parser(argparse.ArgumentParser):
    """Of what is typed after a command. What it cannot read is a UserError, options by the names that make has for them."""

    def error(self, message: str) -> NoReturn:
        if found := re.fullmatch(r"argument --(\w+): invalid int value: '(.*)'", message):
            raise UserError(f"{found[1].upper()}={found[2]}: give a whole number")
        if found := re.fullmatch(r"argument (--\w+): expected one argument", message):
            raise UserError(f"{found[1]} needs a value: give one, or leave it out")
        if found := re.match(r"unrecognized arguments: (-\S+)", message):
            options = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
            raise UserError(f"no option {found[1]}{nearest(found[1], options)}")
        raise UserError(f"{message}; {' '.join(self.format_usage().split())}")


def nearest(word: str, words: Iterable[str]) -> str:
    """'; did you mean X? Choose from: ...' for a word that is not among `words`, of which no more than a line's are named."""
    choices = sorted(words)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    guess = f"; did you mean {close[0]}?" if close else "."
    if len(choices) > MOST:
        near = sorted(difflib.get_close_matches(word, choices, n=MOST, cutoff=0.0))
        return f"{guess} Choose from {len(choices)}, the nearest: {', '.join(near)}"
    return f"{guess} Choose from: {', '.join(choices)}"


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception, torch's too, says that memory of the device or the machine was short."""
    said = isinstance(error, RuntimeError) and ("can't allocate memory" in str(error) or "out of memory" in str(error))
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or said


@contextlib.contextmanager
def one_line() -> Iterator[None]:
    """Turn a UserError, or a full or read-only disk, into one line on stderr and exit code 2; divergence and too little memory
    into code 1."""
    try:
        yield
    except UserError as error:
        # a DataLoader's worker hands an error on with its own traceback as text, the error's line last
        text = str(error).strip().splitlines()[-1].split("UserError: ")[-1]
        print(f"error: {text}", file=sys.stderr)
        sys.exit(BUSY if isinstance(error, BusyError) else 2)
    except FloatingPointError as error:
        print(f"error: training diverged: {error}; nothing was recorded", file=sys.stderr)
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        first = " ".join(str(error).split())[:200] or type(error).__name__
        print(
            f"error: out of memory ({first}): make hardware.max_batch_per_device smaller, which leaves the batch of a step as it is, "
            "or give the run a larger machine; nothing was recorded",
            file=sys.stderr,
        )
        sys.exit(1)
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        where = f" at {error.filename}" if error.filename else ""
        print(
            f"error: cannot write{where}: {error.strerror}. Make room or change the folder (paths.outputs=..., "
            "paths.results=..., paths.data=...), then type the same command again; finished runs are kept",
            file=sys.stderr,
        )
        sys.exit(2)
