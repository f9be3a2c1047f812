"""What a run would take on a GPU that is not here: memory and hours, from MACs and published throughputs, each with what is assumed and how
far that is off.

hours    A step costs three times the MACs of a forward pass. How many MACs an A100 does in a second is taken from published training
         throughputs (results/published/throughput.csv): their geometric mean, which the rows miss by a factor of `spread` at most. A network
         with a scan is slower, by what one published training of VMamba says. An H100 is faster by the ratio of their memories' bandwidths,
         since networks with depthwise convolutions and scans wait for memory.
memory   What autograd keeps (cost.activation_bytes; half of it under mixed precision, but not of SSMs, which compute in float32), what
         the loss of a segmentation holds, 16 bytes a parameter, and CONTEXT.

Both are compared with what some steps on a GPU took (results/reference/measured/gpu_steps.csv, by benchmarks/estimate.py), and how far they
were off is printed with them.
"""

import csv
import dataclasses
import functools
import math
import statistics
from typing import Any

from hypotheses.config import ROOT, Config, is_dense
from hypotheses.data.preflight.sets import COUNTS

FILE = ROOT / "results" / "published" / "throughput.csv"
STEPS = ROOT / "results" / "reference" / "measured" / "gpu_steps.csv"  # benchmarks/estimate.py
GIB = 2**30
ALL = 8  # GPUs of a machine, where a config says all of them
CONTEXT = GIB  # bytes of CUDA, its libraries' workspaces and what the allocator cannot use


@dataclasses.dataclass(frozen=True)
class Gpu:
    """memory in bytes; bandwidth of it in GB/s, from NVIDIA's data sheets (SXM, 80 GB; of the RTX 4090 its specifications)."""

    memory: int
    bandwidth: float


GPUS = {"A100": Gpu(80 * GIB, 2039), "H100": Gpu(80 * GIB, 3350)}
OTHERS = {"RTX 4090": Gpu(24 * GIB, 1008)}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """images  at a time on each GPU, in so many `passes` a step
    memory  bytes on each GPU
    most    images at a time that would fit, 0 where not even one does
    step    seconds of a training step, if one GPU does all of it, by its name
    hours   of one GPU for a whole run, by its name"""

    images: int
    passes: int
    memory: int
    most: int
    step: dict[str, float]
    hours: dict[str, float]


@functools.cache
def rates() -> dict[str, float]:
    """MACs per second of a training on an A100, `conv` and `ssm`; `spread`, the factor by which published ones miss `conv` at most."""
    found: dict[str, list[float]] = {"conv": [], "ssm": []}
    with open(FILE, newline="") as file:
        for row in csv.DictReader(file):
            gpu = (GPUS | OTHERS)[row["device"]]
            rate = 3e9 * float(row["macs_g"]) * float(row["images_per_second"])
            found[row["mixer_type"]].append(rate * GPUS["A100"].bandwidth / gpu.bandwidth)
    conv, ssm = (math.exp(sum(map(math.log, each)) / len(each)) for each in (found["conv"], found["ssm"]))
    spread = max(max(rate / conv, conv / rate) for rate in found["conv"])
    return {"conv": conv, "ssm": ssm, "spread": spread, "rows": len(found["conv"])}


def of_run(config: Config) -> Estimate:
    """Of a whole run on GPUs, `hardware.devices` of them side by side, ALL where that says all of them."""
    from hypotheses.tasks.common import divide

    recipe, hardware = config["recipe"], config["hardware"]
    devices = ALL if hardware["devices"] == -1 else hardware["devices"]
    share = divide(recipe["batch_size"], devices * hardware["nodes"], hardware["max_batch_per_device"])
    params, heads, body, kept = network(config)
    fixed = 16 * params + CONTEXT
    smallest = min(gpu.memory for gpu in GPUS.values())
    found = rates()
    scans = config["backbone"].get("mixer", "").startswith(("ssm", "sham"))
    an_image = heads / found["conv"] + body / found["ssm" if scans else "conv"]  # seconds of a forward pass
    factors = {name: GPUS["A100"].bandwidth / gpu.bandwidth for name, gpu in GPUS.items()}
    step = {name: an_image * 3 * recipe["batch_size"] * factor for name, factor in factors.items()}
    seconds = an_image * (3 * trained(config) + validated(config))
    hours = {name: seconds / 3600 * factor for name, factor in factors.items()}
    most = max(0, int((smallest - fixed) // kept))
    return Estimate(share.images, share.passes, round(fixed + share.images * kept), most, step, hours)


def network(config: Config) -> tuple[int, int, int, int]:
    """Of a run's network, for one image as it is trained on: parameters, MACs of the heads and of the backbone, and the bytes that a
    GPU keeps of it for the backward pass."""
    import torch

    from hypotheses import backbones, cost, tasks
    from hypotheses.backbones import scan, scan_gpu

    recipe = config["recipe"]
    height, width = recipe.get("crop") or cost.image_size(config, None)
    with torch.device("meta"):
        if is_dense(config["task"]["name"]):
            from hypotheses.tasks import openmmlab

            model = openmmlab.Counted(tasks.load(config["task"]["name"]).network(config))
            alone: Any = model.model.backbone.network
        else:
            model, _ = cost.on_meta(config["backbone"], recipe["num_classes"], height, width)
            alone = model.backbone
        image = torch.empty(1, 3, height, width)
    whole, body = (cost.macs(part, image).total for part in (model, alone))
    backbones.compute_as(alone, {"gradient_checkpointing": recipe.get("gradient_checkpointing", False)})
    params = sum(p.numel() for p in model.parameters())
    two = torch.cat([image, image])  # norms of batches do not take one
    with scan.kept_every(scan_gpu.CHUNK):
        kept = cost.activation_bytes(model, two, 1.0 if recipe["precision"] == "32-true" else 0.5) // 2
    if config["task"]["name"] == "ade20k":
        # scores of all pixels, in float32: log-probabilities of both heads, then of one their gradient and that of the scores
        kept += 4 * 4 * recipe["num_classes"] * height * width
    return params, whole - body, body, kept


def trained(config: Config) -> int:
    """Images that a run trains on, each as often as it is seen."""
    recipe = config["recipe"]
    batch = recipe["batch_size"]
    return (
        recipe["steps"] * batch if "steps" in recipe else recipe["epochs"] * (number(config, "train") // batch) * batch
    )


def validated(config: Config) -> float:
    """Images of the size that is trained on that a run's validations come to. ADE20K's are whole images, of some 1.33 crops each, at the end also
    at several sizes and mirrored."""
    recipe = config["recipe"]
    length = recipe.get("steps") or recipe["epochs"]
    images = number(config, "val") * (length // recipe["validate_every"] + (not is_dense(config["task"]["name"])))
    if config["task"]["name"] != "ade20k":
        return images
    sizes = recipe["multi_scale"] or {"scales": [], "flip": False}
    several = number(config, "val") * sum(scale**2 for scale in sizes["scales"]) * (1 + sizes["flip"])
    return 4 / 3 * (images + several)


def number(config: Config, split: str) -> int:
    """Images of a split: of a published set as it is published, or of the part of it that a scale takes."""
    data = config["recipe"]["data"]
    if asked := data.get(f"{split}_images"):
        return asked
    whole = COUNTS[data["source"]][split]
    return whole * config["recipe"]["num_classes"] // 1000 if data["source"] == "imagenet" else whole


@functools.cache
def off() -> tuple[list[float], list[float], str]:
    """How many times the estimate some steps of runs on a GPU took, and how many times its memory, each from the least to the most; and the
    GPU."""
    with open(STEPS, newline="") as file:
        rows = list(csv.DictReader(file))
    times, memories = (
        sorted(float(row[key]) / float(row[f"estimated_{key}"]) for row in rows) for key in ("seconds", "memory_gib")
    )
    return times, memories, rows[0]["device"]


def about() -> list[str]:
    """What is assumed, and how far it is off."""
    found = rates()
    times, memories, gpu = off()
    return [
        f"hours   an A100 is taken to do {found['conv'] / 1e12:.1f} T MACs a second in training ({found['ssm'] / 1e12:.1f} T in a backbone with a scan), and a step to cost",
        f"        three times a forward pass: the geometric mean of {found['rows']:.0f} published throughputs in full precision, which miss it by a factor of",
        f"        {found['spread']:.1f} at most; of scans one is known, on another GPU, so a factor of 2 and more. An H100 is taken to be {GPUS['H100'].bandwidth / GPUS['A100'].bandwidth:.1f} times as",
        "        fast, the ratio of their memories' bandwidths. The time to load data and classes of unequal size are not in it. Steps of",
        f"        {len(times)} runs on an {gpu} took {times[0]:.2f} to {times[-1]:.2f} times the estimate (median {statistics.median(times):.2f}); whole runs were not measured",
        "memory  of a GPU: what autograd keeps of its images at a time (half of it in mixed precision, but all of an SSM's), 16 bytes a parameter,",
        f"        and 1 GiB. Those runs took {memories[0]:.2f} to {memories[-1]:.2f} times that; a detector's depends on its objects too",
        "most    images at a time that fit into 80 GB",
    ]
