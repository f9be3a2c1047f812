"""Freed memory stays with the process: the next tensor of the same kind costs no page faults."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from hypotheses import allocator
print(allocator.keep_memory() if sys.argv[1] == "keep" else None)
for turn in range(15):  # blocks of different sizes, as the layers of a network have them
    if turn == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(n << 20) for n in (12, 10, 11)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> tuple[str, int]:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True, timeout=120)
    said, faults = done.stdout.split()
    return said, int(faults)


def glibc() -> tuple[int, ...]:
    name, version = platform.libc_ver()
    return tuple(map(int, version.split("."))) if name == "glibc" else ()


@pytest.mark.skipif(
    glibc() < (2, 36), reason="glibc from 2.36 on keeps blocks of any size, older versions up to 32 MiB"
)
def test_what_was_freed_is_used_again():
    said, kept = page_faults("keep")
    assert said == "True"
    _, ordinary = page_faults("ordinary")
    assert ordinary > 50 and kept < ordinary / 10
