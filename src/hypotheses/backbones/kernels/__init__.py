"""The CPU kernels: C++ beside this file, compiled once by the machine's own compiler and loaded with ctypes.

    library("scan")     the compiled scan.cpp, or None with a line of notice where it cannot be had

Compiled for the processor at hand, so the library's name is a hash of source, compiler and processor: another machine that
shares the home folder makes its own. It lies in $XDG_CACHE_HOME/hypotheses (~/.cache/hypotheses), which may be deleted at
any time. HYPOTHESES_KERNELS=off never uses one, CXX names the compiler.
"""

import atexit
import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent
FLAGS = [
    "-std=c++17",
    "-O3",
    "-march=native",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp",
    "-shared",
    "-fPIC",
    "-w",
]


@functools.cache
def library(name: str) -> ctypes.CDLL | None:
    """The compiled <name>.cpp; None where HYPOTHESES_KERNELS=off or, with one line on stderr, where it cannot be made."""
    if os.environ.get("HYPOTHESES_KERNELS") == "off":
        return None
    try:
        try:
            return ctypes.CDLL(str(build(name, cache())))
        except OSError:  # a file that was damaged, or a folder that nothing may be executed from
            return ctypes.CDLL(str(build(name, temporary())))
    except Exception as error:  # whatever a compiler or a machine can come up with: there is another way
        lines = str(getattr(error, "stderr", None) or error).strip().splitlines() or [type(error).__name__]
        reason = next((line for line in lines if "error" in line), lines[-1])
        notice(f"no compiled {name} ({reason.strip()}): plain PyTorch is used, which is slower and as exact")
        return None


def call(name: str, function: str, *arguments: Any) -> None:
    """Call a function of a library with as many threads as torch uses, which every function takes as its last argument.

    A tensor is handed over as the address of its data, None as null, whole numbers and booleans as 64-bit integers, and
    ctypes' own types as they are. The caller sees to dtype, device and strides.
    """
    compiled = library(name)
    assert compiled is not None
    converted = [
        ctypes.c_int64(a) if isinstance(a, int) else ctypes.c_void_p(a.data_ptr()) if isinstance(a, torch.Tensor) else a
        for a in arguments  # which hold the tensors until the function has returned
    ]
    getattr(compiled, function)(*converted, ctypes.c_int(torch.get_num_threads()))


def build(name: str, folder: Path) -> Path:
    """Compile <name>.cpp into a folder, if it is not there yet. Raises OSError or SubprocessError."""
    command = shlex.split(os.environ.get("CXX", "g++"))
    if not command or shutil.which(command[0]) is None:
        raise OSError(f"no compiler {' '.join(command)}")
    flags = list(FLAGS)
    if platform.machine() == "x86_64":
        flags.append("-mprefer-vector-width=512")
    digest = hashlib.sha256(" ".join([compiler(), processor(), *flags]).encode())
    sources = [FOLDER / f"{name}.cpp", *sorted(FOLDER.glob("*.h"))]
    for source in sources:
        digest.update(source.read_bytes())
    file = f"{name}-{digest.hexdigest()[:16]}.so"
    if not (folder / file).exists():
        with tempfile.TemporaryDirectory(dir=folder) as aside:  # so that another process never sees half of it
            made = Path(aside, file)
            command += [*flags, str(sources[0]), "-o", str(made)]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
            os.replace(made, folder / file)
    return folder / file


@functools.cache
def compiler() -> str:
    """The compiler's name and version, as it gives them."""
    command = [*shlex.split(os.environ.get("CXX", "g++")), "--version"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    return next(iter(done.stdout.splitlines()), "unknown")


def processor() -> str:
    """What decides the instructions that -march=native may use."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "".join(next((x for x in lines if x.startswith(key)), "") for key in ("model name", "flags", "Features"))
    return platform.processor()


def cache() -> Path:
    """A folder for compiled files that only this user can write to: the usual one, else one of this process."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "hypotheses")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        if status.st_uid == os.getuid() and not status.st_mode & 0o022 and os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):  # RuntimeError: a user without a home
        pass
    return temporary()


@functools.cache
def temporary() -> Path:
    """Removed when the process ends."""
    folder = tempfile.mkdtemp(prefix="hypotheses-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@functools.cache
def notice(text: str) -> None:
    """Once per process, and not from every process of a distributed run."""
    if os.environ.get("RANK", "0") == "0":
        print(f"note: {text}", file=sys.stderr)
