"""The CPU kernels: C++ beside this file, compiled once by the machine's own compiler and loaded with ctypes.

    library("scan")     the compiled scan.cpp, or None with a line of notice where it cannot be had

Compiled for the processor at hand, so the library's name is a hash of source, compiler and processor: another machine that
shares the home folder makes its own. It lies in $XDG_CACHE_HOME/hypotheses (~/.cache/hypotheses), which may be deleted at
any time. HYPOTHESES_KERNELS=off never uses one, CXX names the compiler.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
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
            return ctypes.CDLL(str(build(name)))
        except OSError:  # a file that was damaged
            return ctypes.CDLL(str(build(name, again=True)))
    except (OSError, subprocess.SubprocessError) as error:
        output = getattr(error, "stderr", None) or str(error)
        reason = next((line for line in output.splitlines() if "error" in line), output.splitlines()[-1])
        notice(f"no compiled {name} ({reason.strip()}): plain PyTorch is used, which is slower and as exact")
        return None


def call(name: str, function: str, *arguments: Any) -> None:
    """Call a function of a library with as many threads as torch uses, which every function takes as its last argument.
    Whole numbers and booleans become 64-bit integers; ctypes' own types and pointers stay."""
    compiled = library(name)
    assert compiled is not None
    converted = [ctypes.c_int64(a) if isinstance(a, int) else a for a in arguments]
    getattr(compiled, function)(*converted, ctypes.c_int(torch.get_num_threads()))


def pointer(tensor: torch.Tensor | None) -> ctypes.c_void_p | None:
    """Where a tensor's data lie; null for None."""
    return None if tensor is None else ctypes.c_void_p(tensor.data_ptr())


def build(name: str, again: bool = False) -> Path:
    """Compile <name>.cpp, if that was not done before or is asked for again. Raises OSError or SubprocessError."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise OSError(f"no compiler {os.environ.get('CXX', 'g++')}")
    flags = list(FLAGS)
    if platform.machine() == "x86_64":
        flags.append("-mprefer-vector-width=512")
    sources = [FOLDER / f"{name}.cpp", *sorted(FOLDER.glob("*.h"))]
    digest = hashlib.sha256(" ".join([compiler_version(compiler), processor(), *flags]).encode())
    for source in sources:
        digest.update(source.read_bytes())
    file = f"{name}-{digest.hexdigest()[:16]}.so"
    folder = cache()
    if (folder / file).exists() and not again:
        return folder / file
    with tempfile.TemporaryDirectory(
        dir=folder
    ) as aside:  # written aside, so that another process never sees half of it
        made = Path(aside, file)
        command = [compiler, *flags, str(sources[0]), "-o", str(made)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
        os.replace(made, folder / file)
    return folder / file


def compiler_version(compiler: str) -> str:
    done = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True, timeout=60)
    return done.stdout.splitlines()[0]


def processor() -> str:
    """What decides the instructions that -march=native may use."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "".join(next((x for x in lines if x.startswith(key)), "") for key in ("model name", "flags", "Features"))
    return platform.processor()


def cache() -> Path:
    """A folder of this user for compiled files: the usual one, or one of this process where that cannot be written to."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "hypotheses")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    return temporary()


@functools.cache
def temporary() -> Path:
    return Path(tempfile.mkdtemp(prefix="hypotheses-"))


@functools.cache
def notice(text: str) -> None:
    """Once per process, and not from every process of a distributed run."""
    if os.environ.get("RANK", "0") == "0":
        print(f"note: {text}", file=sys.stderr)
