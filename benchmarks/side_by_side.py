"""Timing of alternatives in one process, interleaved: every round runs each of them once, so that what else the machine
does hits all alike. What is compared is the ratio within a round; its median over the rounds is quoted with its range."""

import os
import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata

import torch


def measure(functions: dict[str, Callable[[], object]], rounds: int, least: float = 0.1) -> dict[str, list[float]]:
    """Seconds per call of each function in each round. A function is repeated for at least `least` seconds a round, and
    before the first one until it has run three times and that long (or for ten seconds), so that its memory is there."""
    for function in functions.values():
        calls, start = 0, time.perf_counter()
        while (passed := time.perf_counter() - start) < least or (calls < 3 and passed < 10):
            function()
            calls += 1
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            calls, start = 0, time.perf_counter()
            while (passed := time.perf_counter() - start) < least or not calls:
                function()
                calls += 1
            seconds[name].append(passed / calls)
    return seconds


def ratios(slow: list[float], fast: list[float]) -> str:
    """How many times faster: the median of the per-round ratios and their range."""
    each = sorted(a / b for a, b in zip(slow, fast, strict=True))
    return f"{statistics.median(each):.3g} ({each[0]:.3g} to {each[-1]:.3g})"


def machine(*packages: str) -> str:
    """Processor, threads, load and versions: what a ratio was measured on and with."""
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            lines = dict(line.split(":", 1) for line in file if ":" in line)
        name = next((v.strip() for k, v in lines.items() if k.strip() == "model name"), name)
        flags = next((v for k, v in lines.items() if k.strip() == "flags"), "").split()
        name += "".join(f", {f}" for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in flags)
    if torch.cuda.is_available():
        name += f"; {torch.cuda.get_device_name()}"
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in ("torch", *packages))
    return f"{name}; {torch.get_num_threads()} threads; load {os.getloadavg()[0]:.1f}; {versions}"
