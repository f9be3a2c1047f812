"""What a run was made with, beyond the code: kept once in results/provenance/, and named in each record by its sha256.

environment_<sha>.txt  every installed package with its version
lock_<sha>.txt         requirements.lock
changes_<sha>.patch    the uncommitted changes of a run that was made with some
"""

import contextlib
import functools
import hashlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from hypotheses.config import ROOT
from hypotheses.record import SOURCES, write_aside

KINDS = {"environment": ".txt", "lock": ".txt", "changes": ".patch"}


def keep(results: Path) -> dict[str, str | None]:
    """Keep the files of this process's environment; the sha256 of each by its kind, None of what there is not."""
    found = {"environment": environment(), "lock": lock(), "changes": changes()}
    kept: dict[str, str | None] = dict.fromkeys(found)
    for kind, content in found.items():
        if content:
            kept[kind] = digest = hashlib.sha256(content).hexdigest()
            if not (target := file_of(results, kind, digest)).exists():
                write_aside(target, content)
    return kept


def file_of(results: Path, kind: str, sha256: str) -> Path:
    return results / "provenance" / f"{kind}_{sha256[:12]}{KINDS[kind]}"


@functools.cache
def environment() -> bytes:
    """Every installed package, as pip would list it."""
    listed = {f"{d.metadata['Name'].lower()}=={d.version}" for d in metadata.distributions() if d.metadata["Name"]}
    return "".join(f"{line}\n" for line in sorted(listed)).encode()


def lock() -> bytes:
    with contextlib.suppress(OSError):
        return (ROOT / "requirements.lock").read_bytes()
    return b""


def changes() -> bytes:
    """The difference of the sources to their commit, new files too, as `git apply` takes it; nothing without git."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        found = git("diff", "HEAD", "--", *SOURCES)
        for name in git("ls-files", "-z", "--others", "--exclude-standard", "--", *SOURCES).decode().split("\0"):
            if name:
                found += git("diff", "--no-index", "--", "/dev/null", name, fails=True)
        return found
    return b""


def git(command: str, *arguments: str, fails: bool = False) -> bytes:
    """The output of git in the project. `fails`: it ends with 1 where it has found something."""
    plain = ["--no-ext-diff", "--no-color", "--binary"] if command == "diff" else []
    words = ["git", "-C", str(ROOT), command, *plain, *arguments]
    return subprocess.run(words, capture_output=True, check=not fails).stdout


@functools.cache
def cpu() -> str:
    """The processor, as a person would name it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def machine() -> dict[str, Any]:
    """Processor, cores that may be used, memory and GPUs of this machine."""
    import torch

    found: dict[str, Any] = {
        "cpu": cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": None,
        "gpus": [],
        "cuda": torch.version.cuda,
    }
    with contextlib.suppress(OSError, ValueError):
        found["memory_bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if torch.cuda.is_available():
        found["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        with contextlib.suppress(OSError):
            found["driver"] = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    return found


def flags() -> dict[str, Any]:
    """Settings of torch and of the environment that can change rounding, as they are when this is called."""
    import torch

    named = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "MKL_CBWR")
    return {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "environment": {name: os.environ[name] for name in named if name in os.environ},
    }
