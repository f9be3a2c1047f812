"""The selective scan on this CPU or GPU: ours against the peers, side by side.

    python benchmarks/scan.py                   speed, forward and backward, median ratios of interleaved rounds
    python benchmarks/scan.py --mode forward    forward alone, and its share of the rate at which this machine does exp
    python benchmarks/scan.py --channels-first  the peers' tensors as (B, D, L), the interface of mamba_ssm, which is not what
                                                mambapy wants: it takes twice the time
    python benchmarks/scan.py --glibc           with glibc's own allocator settings, as PyTorch comes, for all alike
    python benchmarks/scan.py --memory          peak extra memory of a training step at 4096 tokens
    python benchmarks/scan.py --accuracy        error against a float64 scan, values and gradients
    python benchmarks/scan.py --loops           with the reference recurrences of mamba_ssm and transformers, whose
                                                backward is quadratic in the length (minutes)
    python benchmarks/scan.py --device cuda     any of these on the GPU: our Triton kernels in place of the compiled scan

Peers: mambapy's parallel scan (`pip install mambapy`), and the recurrence as a loop over tensors from `unbind`, as fast as we
could write it. mamba_ssm's own reference indexes its tensors step by step, which makes its backward quadratic in the length: it
is restated here in a few lines (`indexed_loop`), shown with --loops and no yardstick. The compiled scan needs a compiler (CXX, as everywhere).
Speed is measured with the allocator settings of a run, for all alike, which help those most that make the largest tensors;
memory with glibc's own. On a GPU a call ends when the GPU has ended its work, and memory is what PyTorch's allocator gave out.
"""

import argparse
import ctypes
import gc
import statistics
import subprocess
import sys

import torch
from side_by_side import machine, measure, ratios
from torch import Tensor
from torch.nn.functional import softplus

from hypotheses.allocator import keep_memory
from hypotheses.backbones import kernels, scan

# images, channels, states, tokens; the smallest first, since glibc's allocator keeps what large tensors have taught it
SHAPES = [(64, 96, 1, 64), (64, 96, 16, 64), (8, 384, 16, 196), (1, 768, 16, 4096)]
LONG = SHAPES[-1]


def inputs(shape: tuple[int, int, int, int], device: str, large: bool = False) -> list[Tensor]:
    """x, dt, A, B, C, D as (B, L, D), (B, L, D), (D, N), (B, L, N), (B, L, N), (D,): one direction, token-major."""
    batch, channels, states, length = shape
    g = torch.Generator().manual_seed(0)
    dt = softplus(torch.randn(batch, length, channels, generator=g) * (2 if large else 1) - (0 if large else 4))
    A = -torch.arange(1, states + 1.0).repeat(channels, 1)
    A *= 1 + 0.1 * torch.randn(channels, states, generator=g).abs()
    x, B, C = (torch.randn(batch, length, n, generator=g) for n in (channels, states, states))
    return [v.to(device) for v in (x, dt, A, B, C, torch.ones(channels))]


# ---- the alternatives, all of (x, dt, A, B, C, D) as `inputs` gives them -----------------------------------------------


def ours(name: str):
    def run(x, dt, A, B, C, D):
        one = [v.unsqueeze(2) for v in (dt, B, C)]
        return scan.FUNCTIONS[name](x, one[0], A[None], one[1], one[2], D[None], None, None, True)

    return run


def mambapy(x, dt, A, B, C, D):
    """As mambapy.mamba.MambaBlock.selective_scan calls its parallel scan."""
    from mambapy.pscan import pscan

    states = pscan(torch.exp(dt.unsqueeze(-1) * A), (dt * x).unsqueeze(-1) * B.unsqueeze(2))
    return (states @ C.unsqueeze(-1)).squeeze(3) + D * x


def unbind_loop(x, dt, A, B, C, D):
    decay = torch.exp(dt.unsqueeze(-1) * A).unbind(1)
    inflow = ((dt * x).unsqueeze(-1) * B.unsqueeze(2)).unbind(1)
    h, y = torch.zeros_like(decay[0]), []
    for decay_t, inflow_t, C_t in zip(decay, inflow, C.unbind(1), strict=True):
        h = decay_t * h + inflow_t
        y.append((h @ C_t.unsqueeze(-1)).squeeze(-1))
    return torch.stack(y, 1) + D * x


def indexed_loop(x, dt, A, B, C, D):
    """The recurrence of mamba_ssm's selective_scan_ref: (B, D, L, N) tensors, indexed step by step."""
    x, dt, B, C = (v.transpose(1, 2) for v in (x, dt, B, C))
    decay = torch.exp(torch.einsum("bdl,dn->bdln", dt, A))
    inflow = torch.einsum("bdl,bnl,bdl->bdln", dt, B, x)
    h, y = torch.zeros_like(decay[:, :, 0]), []
    for t in range(x.shape[2]):
        h = decay[:, :, t] * h + inflow[:, :, t]
        y.append(torch.einsum("bdn,bn->bd", h, C[:, :, t]))
    return (torch.stack(y, 2) + x * D.unsqueeze(-1)).transpose(1, 2)


def transformers_loop(x, dt, A, B, C, D):
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan  # type: ignore[attr-defined]

    x, dt, B, C = (v.transpose(1, 2) for v in (x, dt, B, C))
    return mamba_selective_scan(x, dt, A, B, C, D).transpose(1, 2)


PEERS = {"mambapy": mambapy, "unbind loop": unbind_loop, "ours, chunked PyTorch": ours("chunked")}
WAYS = {
    "cpu": PEERS | {"ours, compiled": ours("cpp")},
    "cuda": PEERS | {"ours, Triton": ours("triton")},
}
LOOPS = {"mamba_ssm's recurrence": indexed_loop, "transformers' loop": transformers_loop}


def call(way, tensors: list[Tensor], mode: str):
    """One forward pass, or forward and backward, as a function without arguments."""
    tensors = [v.detach().requires_grad_(mode != "forward") for v in tensors]
    weight = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(1)).to(tensors[0].device)

    def run() -> None:
        y = way(*tensors)
        if mode != "forward":
            torch.autograd.grad(y, tensors, weight)
        if y.is_cuda:
            torch.cuda.synchronize()

    return run


def speed(device: str, mode: str, rounds: int, loops: bool, channels_first: bool) -> None:
    exp_rate = exp_per_second() if (mode, device) == ("forward", "cpu") else 0.0
    for shape in SHAPES:
        batch, channels, states, length = shape
        ways = WAYS[device] | (LOOPS if loops and length < 600 else {})
        tensors = inputs(shape, device)
        theirs = [v.mT.contiguous().mT if v.ndim == 3 else v for v in tensors] if channels_first else tensors
        calls = {n: call(way, tensors if n.startswith("ours") else theirs, mode) for n, way in ways.items()}
        seconds = measure(calls, rounds)
        layout = ", the peers' tensors as (B, D, L)" if channels_first else ""
        print(f"\nB, D, N, L = {batch}, {channels}, {states}, {length}; {mode}{layout}; {rounds} rounds")
        for name, each in seconds.items():
            print(f"  {name:24s} {1e3 * statistics.median(each):9.2f} ms (median)", end="")
            if name.startswith("ours"):
                rest = {other: ratios(seconds[other], each) for other in seconds if not other.startswith("ours")}
                print("".join(f"   {ratio} x {other}" for other, ratio in rest.items()), end="")
            print()
        if exp_rate:
            rate = batch * channels * states * length / statistics.median(seconds["ours, compiled"])
            best = batch * channels * states * length / min(seconds["ours, compiled"])
            print(f"  compiled: {rate / 1e9:.1f} G states/s, {100 * rate / exp_rate:.0f} % of the exp rate", end="")
            print(f" ({exp_rate / 1e9:.1f} G/s); best round {100 * best / exp_rate:.0f} %")


def exp_per_second() -> float:
    """How many float32 exp this machine does a second with all threads: the kernel's own exp, as it is where no number is too
    large for it, on data in the first-level cache and nothing else, best of seven tries."""
    rate, best = ctypes.c_double(), 0.0
    for _ in range(7):
        kernels.call("rates", "exp_per_second", ctypes.byref(rate))
        best = max(best, rate.value)
    return best


def memory(device: str) -> None:
    """Each way in a process of its own, after a small warm-up call."""
    print(f"peak extra memory of forward + backward, MB; B, D, N, L = {LONG}")
    peaks = {}
    for name in WAYS[device]:
        command = [sys.executable, __file__, "--peak-of", name, "--device", device]
        command += ["--threads", str(torch.get_num_threads())]
        if name == "unbind loop":
            continue
        peaks[name] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(f"  {name:24s} {peaks[name]:8.0f}   1/{peaks['mambapy'] / peaks[name]:.1f} of mambapy's")


def peak_of(name: str, device: str) -> float:
    """MB above what the process holds before the call, at the worst moment of the call."""
    call(WAYS[device][name], inputs((1, 16, 16, 8), device), "training")()
    run = call(WAYS[device][name], inputs(LONG, device), "training")
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def status(key: str) -> int:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(key))

    gc.collect()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # start the high-water mark anew
    before = status("VmRSS")
    run()
    return (status("VmHWM") - before) / 1024


def accuracy(device: str) -> None:
    """Relative L2 error of y and every gradient; usual steps, and steps so large that exp(-A cumsum dt) would overflow."""
    for shape, large in [
        ((2, 40, 16, 196), False),
        ((2, 40, 16, 196), True),
        ((3, 33, 1, 64), False),
        ((1, 48, 16, 4096), False),
    ]:
        tensors = inputs(shape, device, large)
        true = with_gradients(unbind_loop, [v.double() for v in tensors])
        print(f"B, D, N, L = {shape}, {'large' if large else 'usual'} steps: relative error against float64")
        for name, way in WAYS[device].items():
            found = with_gradients(way, tensors)
            errors = [((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, true, strict=True)]
            shown = "  ".join(
                f"{label} {e:.1e}" for label, e in zip(("y", "dx", "ddt", "dA", "dB", "dC", "dD"), errors, strict=True)
            )
            print(f"  {name:24s} {shown}")


def with_gradients(way, tensors: list[Tensor]) -> list[Tensor]:
    tensors = [v.detach().requires_grad_() for v in tensors]
    y = way(*tensors)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    return [y.detach(), *torch.autograd.grad(y, tensors, weight)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=WAYS, default="cpu")
    parser.add_argument("--mode", choices=["training", "forward"], default="training")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--accuracy", action="store_true")
    parser.add_argument("--loops", action="store_true")
    parser.add_argument("--channels-first", action="store_true")
    parser.add_argument("--glibc", action="store_true")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here")
    if asked.device == "cpu" and kernels.library("scan") is None:
        parser.error("there is no compiled scan to measure: install g++, and leave HYPOTHESES_KERNELS alone")
    if asked.peak_of:
        print(peak_of(asked.peak_of, asked.device))
        return
    if asked.memory:
        memory(asked.device)
    elif asked.accuracy:
        accuracy(asked.device)
    else:
        if not asked.glibc:
            keep_memory()
        speed(asked.device, asked.mode, asked.rounds, asked.loops, asked.channels_first)
    print(machine("mambapy", *(["transformers"] if asked.loops else [])))


if __name__ == "__main__":
    main()
