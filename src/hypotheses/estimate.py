"""What a run would take on a GPU that is not here: memory and hours, from MACs and published throughputs, each with what is assumed and how
far that is off.

hours    A step costs three times the MACs of a forward pass. How many MACs an A100 does in a second is taken from published training
         throughputs (results/published/throughput.csv): their geometric mean, which the rows miss by a factor of `spread` at most. A network
         with a scan is slower, by what one published training of VMamba says. An H100 is faster by the ratio of their memories' bandwidths,
         since networks with depthwise convolutions and scans wait for memory.
memory   What autograd keeps (cost.activation_bytes, float32, half of it under mixed precision), 16 bytes a parameter, and CONTEXT.
"""

import csv
import dataclasses
import functools
import math
from typing import Any

from hypotheses.config import ROOT, Config, is_dense
from hypotheses.data.preflight.sets import COUNTS

FILE = ROOT / "results" / "published" / "throughput.csv"
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
    hours   of one GPU for a whole run, by name"""

    images: int
    passes: int
    memory: int
    most: int
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
    params, heads, body, activations = network(config)
    kept = activations * (0.5 if recipe["precision"] != "32-true" else 1.0)
    fixed = 16 * params + CONTEXT
    smallest = min(gpu.memory for gpu in GPUS.values())
    found = rates()
    scans = config["backbone"].get("mixer", "").startswith(("ssm", "sham"))
    an_image = heads / found["conv"] + body / found["ssm" if scans else "conv"]  # seconds of a forward pass
    seconds = an_image * (3 * trained(config) + validated(config))
    hours = {name: seconds / 3600 * GPUS["A100"].bandwidth / gpu.bandwidth for name, gpu in GPUS.items()}
    most = max(0, int((smallest - fixed) // kept))
    return Estimate(share.images, share.passes, round(fixed + share.images * kept), most, hours)


def network(config: Config) -> tuple[int, int, int, int]:
    """Of a run's network, for one image as it is trained on: parameters, MACs of the heads and of the backbone, bytes of activations."""
    import torch

    from hypotheses import backbones, cost, tasks

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
    return params, whole - body, body, cost.activation_bytes(model, two) // 2


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


def about() -> list[str]:
    """What is assumed, and how far it is off."""
    found = rates()
    return [
        f"hours   an A100 is taken to do {found['conv'] / 1e12:.1f} T MACs a second in training ({found['ssm'] / 1e12:.1f} T in a backbone with a scan), and a step to cost",
        f"        three times a forward pass: the geometric mean of {found['rows']:.0f} published throughputs in full precision, which miss it by a factor of",
        f"        {found['spread']:.1f} at most; of scans one is known, on another GPU, so a factor of 2 and more. An H100 is taken to be {GPUS['H100'].bandwidth / GPUS['A100'].bandwidth:.1f} times as",
        "        fast, the ratio of their memories' bandwidths. The time to load data and classes of unequal size are not in it; no run on a GPU was measured here",
        "memory  of a GPU: what autograd keeps of its images at a time (half of it in mixed precision), 16 bytes a parameter, and 1 GiB; measured",
        "        on a CPU it is off by a third at most (tests/test_estimate.py); a detector's depends on its objects too",
        "most    images at a time that fit into 80 GB",
    ]
