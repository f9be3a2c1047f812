"""MambaOut on this CPU: ours against timm's, with the same weights, which give the same outputs; side by side.

    python benchmarks/backbone.py --model mambaout_femto             training steps: forward, backward, AdamW
    python benchmarks/backbone.py --model mambaout_tiny --mode inference
    python benchmarks/backbone.py --stack --mode inference           the whole stack as a run uses it (kernels, allocator,
                                                                     bfloat16) against timm as installed, each in its own
                                                                     process, in turn
    python benchmarks/backbone.py --arms                             a training step of each arm against the Gated CNN's

In the first two both have the same allocator settings and precision: float32, and bfloat16 autocast (--precision). `plain` is
our network without the compiled kernels.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys

import timm
import torch
from side_by_side import machine, measure, ratios
from torch import nn
from torch.nn import functional as F

from hypotheses import backbones
from hypotheses.allocator import keep_memory
from hypotheses.backbones import kernels, weights
from hypotheses.config import compose

PRECISIONS = ["float32", "bf16 autocast"]
BATCH = {"mambaout_femto": 16, "mambaout_kobe": 16, "mambaout_tiny": 8, "mambaout_small": 4, "mambaout_base": 4}


def ours(name: str, state: dict | None = None) -> nn.Module:
    model = backbones.build_classifier(compose([f"backbone={name}"])["backbone"], 1000, 0)
    if state is not None:
        model.load_state_dict(weights.fit(state, model, "timm"))
    return model


@contextlib.contextmanager
def plain():
    """Without compiled kernels."""
    library = kernels.library
    kernels.library = lambda name: None
    try:
        yield
    finally:
        kernels.library = library


def step(model: nn.Module, images: torch.Tensor, mode: str, bf16: bool):
    """A call of the network on `images`, or a training step, as a function without arguments."""
    precision = torch.autocast("cpu", torch.bfloat16, enabled=bf16)
    if mode == "inference":
        model.eval()

        def infer():
            with torch.inference_mode(), precision:
                return model(images)

        return infer
    model.train()
    labels = torch.arange(len(images))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

    def train():
        with precision:
            loss = F.cross_entropy(model(images).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return train


def against_timm(name: str, mode: str, rounds: int, precisions: list[str]) -> None:
    images = torch.randn(BATCH[name], 3, 224, 224)
    peer = timm.create_model(name)
    ways = {}
    for precision in precisions:
        bf16 = precision == "bf16 autocast"
        models = {"timm": timm.create_model(name), "ours": ours(name, peer.state_dict())}
        models["timm"].load_state_dict(peer.state_dict())
        if precision == precisions[0]:
            with torch.inference_mode():
                difference = (models["timm"].eval()(images[:2]) - models["ours"].eval()(images[:2])).abs().max()
            print(f"{name}: largest difference of the outputs with the same weights {difference:.1e}")
        for who, model in models.items():
            ways[f"{who}, {precision}"] = step(model, images, mode, bf16)
        plainly = step(ours(name, peer.state_dict()), images, mode, bf16)

        def without_kernels(plainly=plainly):
            with plain():
                plainly()

        ways[f"plain, {precision}"] = without_kernels
    seconds = measure(ways, rounds, 0.3)
    print(f"{name}, batch {BATCH[name]}, {mode}, same allocator settings, {rounds} rounds")
    for way, each in seconds.items():
        who, precision = way.split(", ")
        shown = "" if who == "timm" else f"   {ratios(seconds[f'timm, {precision}'], each)} x timm, {precision}"
        print(f"  {way:24s} {BATCH[name] / statistics.median(each):8.1f} images/s (median){shown}")


def stack(name: str, mode: str, rounds: int) -> None:
    """Ours as shipped and timm as installed, each in processes of its own, in turn."""
    rates: dict[str, list[float]] = {"ours": [], "timm": []}
    for _ in range(rounds):
        for who, each in rates.items():
            command = [sys.executable, __file__, "--model", name, "--mode", mode, "--rate-of", who]
            command += ["--threads", str(torch.get_num_threads())]
            each.append(float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]))
    print(
        f"{name}, batch {BATCH[name]}, {mode}: the whole stack, bf16, against timm as installed, {rounds} pairs of processes"
    )
    print(f"  timm as installed {statistics.median(rates['timm']):8.1f} images/s (median)")
    print(f"  ours as shipped   {statistics.median(rates['ours']):8.1f} images/s (median)", end="")
    print(f"   {ratios([1 / r for r in rates['timm']], [1 / r for r in rates['ours']])} x timm as installed")


def rate_of(who: str, name: str, mode: str) -> float:
    """Images per second of one of the two in this process: the best of five."""
    if who == "ours":
        keep_memory()
    model = ours(name) if who == "ours" else timm.create_model(name)
    images = torch.randn(BATCH[name], 3, 224, 224)
    seconds = measure({who: step(model, images, mode, who == "ours")}, 5, 0.3)[who]
    return BATCH[name] / min(seconds)


def arms(name: str, rounds: int) -> None:
    images = torch.randn(BATCH.get(name, 64), 3, *([224] * 2 if name in BATCH else [32] * 2))
    folder = os.path.join(os.path.dirname(__file__), "..", "conf", "backbone")
    names = sorted(f[:-5] for f in os.listdir(folder) if f.startswith(f"{name}") and f.endswith(".yaml"))
    ways = {arm: step(ours(arm), images, "training", False) for arm in names}
    seconds = measure(ways, rounds, 0.3)
    print(f"training step of each arm, float32, batch {len(images)} of {images.shape[-1]} pixels, {rounds} rounds")
    for arm, each in seconds.items():
        print(
            f"  {arm:32s} {1e3 * statistics.median(each):8.1f} ms (median)   {ratios(each, seconds[name])} x {name}'s"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mambaout_femto")
    parser.add_argument("--mode", choices=["training", "inference"], default="training")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--stack", action="store_true")
    parser.add_argument("--arms", action="store_true")
    parser.add_argument("--rate-of", choices=["ours", "timm"], help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    if asked.rate_of:
        print(rate_of(asked.rate_of, asked.model, asked.mode))
        return
    if asked.stack:
        stack(asked.model, asked.mode, asked.rounds)
    else:
        keep_memory()
        if asked.arms:
            arms(asked.model, asked.rounds)
        else:
            against_timm(asked.model, asked.mode, asked.rounds, asked.precision)
    print(machine("timm"))


if __name__ == "__main__":
    main()
