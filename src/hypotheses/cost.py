"""What a network costs, counted without allocating it: parameters, MACs, memory for training, tokens.

    python -m hypotheses.cost task=coco backbone=mambaout_small --arms

MACs          multiply-accumulates of one forward pass in the convention of fvcore's counter, and so of the papers'
              tables: a multiply-add of a matrix product or a convolution is one, a LayerNorm 5 per element, biases and
              activations nothing; causal attention counts in full, masked half included. The scan counts 9 E N + E per
              token and direction (`SSM.macs`), which no generic counter sees.
Activations   bytes that autograd keeps of one forward pass until the backward pass: every tensor's storage once, in
              float32, with the image, without the parameters and without what a kernel uses and frees. Attention keeps
              what fused kernels keep (no L x L matrix), a scan its inputs and one state in 32 tokens. The fused gate of a
              CPU keeps less than the plain one, which is counted.
Long          paper (arXiv 2405.07992), section 3.2: the FLOPs of a Transformer block with an MLP ratio of 4 are
              24 D^2 L + 4 D L^2; the quadratic part is r = L / (6 D) of the linear one, and a sequence is long where
              r > 1, L > tau = 6 D. Of causal attention half the pairs of tokens are needed, 2 D L^2, so there
              r = L / (12 D) and tau = 12 D.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
from typing import TYPE_CHECKING, Any

from hypotheses import config
from hypotheses.config import CONF, Config, is_dense
from hypotheses.errors import Parser, UserError, one_line

if TYPE_CHECKING:  # torch takes seconds to import, and --help and mistakes do without it
    from torch import Tensor, nn

MAX_SIDE = 65_536  # pixels


@dataclasses.dataclass(frozen=True)
class Macs:
    """MACs of a forward pass: all; of token mixing (depthwise convolutions, SSM layers, attention's products of two
    tokens); of the scans alone, which are in the SSM layers."""

    total: int
    mixing: int
    scan: int


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one network for one image. Activations are not counted for a whole detector or segmentor (None): its heads keep
    what their samples of the training need, which depends on the annotations."""

    params: int
    macs: Macs
    activation_bytes: int | None


@dataclasses.dataclass(frozen=True)
class Stage:
    """Of a backbone at one image size: `tokens` L, `channels` D, `tau` the L from which on it is long, `ratio` L/tau."""

    stride: int
    tokens: int
    channels: int
    blocks: int
    tau: int
    ratio: float
    long: bool


@dataclasses.dataclass(frozen=True)
class Row:
    """A backbone at one image size: its cost alone, in the whole network of its task, its stages."""

    name: str
    backbone: Cost
    with_head: Cost
    stages: tuple[Stage, ...]


# ---- counting --------------------------------------------------------------------------------------------------------


def of_run(config: Config) -> dict[str, int]:
    """params and macs of a run's network at its image size."""
    if not is_dense(config["task"]["name"]):
        recipe = config["recipe"]
        return count(config["backbone"], recipe["num_classes"], *image_size(config, None))
    cost = whole(config, *image_size(config, None))
    return {"params": cost.params, "macs": cost.macs.total}


def whole(config: Config, height: int, width: int) -> Cost:
    """The cost of the detector or segmentor of a run, for one image."""
    import torch

    from hypotheses import tasks
    from hypotheses.tasks import openmmlab

    try:
        with torch.device("meta"):
            model = tasks.load(config["task"]["name"]).network(config)
            image = torch.empty(1, 3, height, width)
        counted = macs(openmmlab.Counted(model), image)
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"recipe.model or the image size does not fit {config['task']['name']}'s network: {first}"
        ) from error
    return Cost(sum(p.numel() for p in model.parameters()), counted, None)


def count(backbone: dict[str, Any], num_classes: int, height: int, width: int) -> dict[str, int]:
    """params and macs of a backbone with its classification head, for one image of height x width pixels."""
    model, image = on_meta(backbone, num_classes, height, width)
    return {"params": sum(p.numel() for p in model.parameters()), "macs": macs(model, image).total}


def on_meta(backbone: dict[str, Any], num_classes: int | None, height: int, width: int) -> tuple[nn.Module, Tensor]:
    """A network that takes no memory and an image (1, 3, height, width) for it; without head if num_classes is None.

    Raises UserError if the network cannot be built or does not take such an image.
    """
    import torch

    from hypotheses.backbones import FAMILIES, Classifier, build

    with torch.device("meta"):
        model = build(backbone)
        image = torch.empty(1, 3, height, width)
        try:
            with torch.no_grad():
                model(image)
        except ValueError as error:
            raise UserError(str(error)) from error
        if num_classes is not None:
            model = Classifier(model, FAMILIES[backbone["family"]][1](model.dims[-1], num_classes))
    return model, image


def macs(model: nn.Module, image: Tensor) -> Macs:
    """MACs of a forward pass of the image, (1, 3, H, W)."""
    import torch
    from torch import nn
    from torch.utils.flop_counter import FlopCounterMode

    from hypotheses.backbones.ssm import SSM
    from hypotheses.backbones.vit import Attention

    scan = norms = 0

    def add(module: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        nonlocal scan, norms
        x = inputs[0]
        if isinstance(module, SSM):
            scan += module.macs(tokens=x.shape[1] * x.shape[2])
        else:
            norms += 5 * x.numel()

    handles = [m.register_forward_hook(add) for m in model.modules() if isinstance(m, SSM | nn.LayerNorm)]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(image)
    for handle in handles:
        handle.remove()
    products = {name: sum(ops.values()) // 2 for name, ops in counter.get_flop_counts().items()}  # torch counts two

    def inside(name: str) -> int:
        return products.get(f"{type(model).__name__}.{name}", 0)

    mixing = scan
    for name, module in model.named_modules():
        if isinstance(module, SSM) or (isinstance(module, nn.Conv2d) and module.groups > 1):
            mixing += inside(name)
        elif isinstance(module, Attention):
            linear = [f"{name}.{child}" for child, m in module.named_children() if isinstance(m, nn.Linear)]
            mixing += inside(name) - sum(map(inside, linear))
    return Macs(counter.get_total_flops() // 2 + norms + scan, mixing, scan)


def activation_bytes(model: nn.Module, image: Tensor, share: float = 1.0) -> int:
    """Bytes that autograd keeps of a forward pass of the image, (1, 3, H, W), on whatever device both are; of what mixed precision
    keeps in fewer bytes, which is all but SSMs, that `share`.

    On the meta device nothing runs, so two things are put as they are elsewhere: attention takes the fused kernel, and
    a scan that is outside of autograd there is given its inputs dt, B and C (x is kept by the projections already).
    """
    import torch
    from torch.nn import functional as F
    from torch.overrides import TorchFunctionMode

    from hypotheses.backbones.ssm import SSM

    class FusedAttention(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func is F.scaled_dot_product_attention and args[0].is_meta:
                causal = kwargs.get("is_causal", False)
                return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*args, is_causal=causal)[0]
            return func(*args, **kwargs)

    own = {p.untyped_storage()._cdata for p in model.parameters()}
    kept = {}  # storages by address, with what of them counts; held, so that no address is used twice
    inside = []  # of the SSMs that are at work

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept.setdefault(storage._cdata, (storage, 1.0 if inside else share))
        return tensor

    hooks = []
    for ssm in (module for module in model.modules() if isinstance(module, SSM)):
        hooks.append(ssm.register_forward_pre_hook(lambda *_: inside.append(True)))
        hooks.append(ssm.register_forward_hook(lambda *_: inside.clear()))
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), FusedAttention():
        model.train()(image)
    for hook in hooks:
        hook.remove()
    return round(sum(storage.nbytes() * part for storage, part in kept.values()))


def measure(backbone: dict[str, Any], num_classes: int | None, height: int, width: int) -> Cost:
    """The cost of a backbone, with its classification head unless num_classes is None, for one image."""
    model, image = on_meta(backbone, num_classes, height, width)
    return Cost(sum(p.numel() for p in model.parameters()), macs(model, image), activation_bytes(model, image))


def stages(backbone: dict[str, Any], height: int, width: int) -> tuple[Stage, ...]:
    """The stages of a backbone for an image of height x width pixels."""
    import torch

    network: Any
    network, image = on_meta(backbone, None, height, width)
    with torch.no_grad():
        maps = network(image)
    depths = backbone["depths"] if "depths" in backbone else [backbone["depth"]]
    factor = 12 if backbone.get("causal") else 6
    found = []
    for x, stride, blocks in zip(maps, network.strides, depths, strict=True):
        tokens, tau = x.shape[2] * x.shape[3], factor * x.shape[1]
        found.append(Stage(stride, tokens, x.shape[1], blocks, tau, tokens / tau, tokens > tau))
    return tuple(found)


# ---- what is asked for -----------------------------------------------------------------------------------------------


def compose(overrides: list[str]) -> Config:
    """The config of these Hydra overrides. Of detection and segmentation it is the paper's unless another scale is named: their
    size is what people ask about."""
    dense = any(o in ("task=coco", "task=ade20k") for o in overrides)
    named = any(o.startswith("scale=") for o in overrides)
    return config.compose([*overrides, "scale=paper"] if dense and not named else overrides)


def image_size(config: Config, asked: str | None) -> tuple[int, int]:
    """Height and width in pixels: `asked` (HxW, or one number for a square), else those of the task. Raises UserError."""
    if asked is None:
        size = config["recipe"]["image_size"]
        return (size[0], size[1]) if isinstance(size, list) else (size, size)
    sides = re.fullmatch(r"(\d{1,9})(?:x(\d{1,9}))?", asked)
    height, width = (int(sides[1]), int(sides[2] or sides[1])) if sides else (0, 0)
    if not (1 <= height <= MAX_SIDE and 1 <= width <= MAX_SIDE):
        raise UserError(
            f"size={asked}: give height x width in pixels from 1 to {MAX_SIDE}, as size=800x1280, or size=224"
        )
    return height, width


def arms_of(name: str) -> list[str]:
    """The backbones of conf/backbone/ of the same family and size: mambaout_tiny, mambaout_tiny_ssm, ..."""
    size = name.split("_")[:2]
    return sorted(f.stem for f in (CONF / "backbone").glob("*.yaml") if f.stem.split("_")[:2] == size)


# ---- the table -------------------------------------------------------------------------------------------------------


def amount(number: float, units: tuple[str, ...], base: int) -> str:
    """Four digits and a unit, 182.8 G; `units` are powers of `base` apart, the first is that of `number`."""
    power = 0
    while number >= base and power < len(units) - 1:
        number, power = number / base, power + 1
    digits = max(0, 4 - len(str(int(number)))) if power else 0
    return f"{number:,.{digits}f} {units[power]}".strip()


def columns(rows: list[list[str]]) -> list[str]:
    """Rows as lines of aligned columns, the first to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(others, widths[1:], strict=True))]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return lines


def cells(cost: Cost, first: Cost | None) -> list[str]:
    """The cells of a cost; behind the whole ones the difference to the first arm, behind parts their share."""

    def against(value: int, was: int | None) -> str:
        return "" if was is None else f" ({100 * (value / was - 1):+.1f} %)"

    total = cost.macs.total
    return [
        f"{cost.params:,}{against(cost.params, first and first.params)}",
        f"{amount(total, ('', 'k', 'M', 'G', 'T'), 1000)}{against(total, first and first.macs.total)}",
        *(f"{100 * part / total:.1f} %" for part in (cost.macs.mixing, cost.macs.scan)),
        "-"
        if cost.activation_bytes is None
        else f"{amount(cost.activation_bytes, ('B', 'KiB', 'MiB', 'GiB', 'TiB'), 1024)}"
        f"{against(cost.activation_bytes, first and first.activation_bytes)}",
    ]


def table(rows: list[Row], task: str, scales: list[str], height: int, width: int, changes: list[str]) -> str:
    """The costs, a row per network; the stages, once for all arms that agree in them; what the numbers mean. `changes`
    are the overrides that make the networks other ones than their names say."""
    first = rows[0]
    lines = [f"task {task}, {' and '.join(scales)} scale: one image of {height} x {width} pixels (height x width)"]
    if changes:
        lines.append(f"with {' '.join(changes)}")
    lines.append("")
    whole_name = {"coco": "Mask R-CNN", "ade20k": "UPerNet"}.get(task, "with head")
    body = [["", "parameters", "MACs", "token mixing", "scan", "activations"]]
    for row in rows:
        again = None if row is first else first
        body.append([f"{row.name}, {whole_name}", *cells(row.with_head, again and again.with_head)])
        body.append([f"{row.name}, backbone", *cells(row.backbone, again and again.backbone)])
    lines += columns(body)
    groups: dict[tuple[Stage, ...], list[str]] = {}
    for row in rows:
        groups.setdefault(row.stages, []).append(row.name)
    for found, names in groups.items():
        factor = found[0].tau // found[0].channels
        body = [["stage", "stride", "tokens L", "channels D", "blocks", f"tau = {factor} D", f"L/({factor} D)", "long"]]
        for number, s in enumerate(found, 1):
            size = [f"{s.stride}", f"{s.tokens:,}", f"{s.channels}", f"{s.blocks}", f"{s.tau:,}"]
            body.append([f"{number}", *size, f"{s.ratio:.2f}", "yes" if s.long else "no"])
        if len(found) > 1:
            body.append(
                ["all", "", f"{sum(s.tokens for s in found):,}", "", f"{sum(s.blocks for s in found)}", "", "", ""]
            )
        lines += ["", f"Stages of {', '.join(names)}:", "", *columns(body)]
    causal = any(s.tau == 12 * s.channels for row in rows for s in row.stages)
    lines += [
        "",
        "MACs          multiply-accumulates of a forward pass, the scan included, counted as fvcore does: a multiply-add is",
        "              one, a LayerNorm 5 per element, causal attention in full; k, M, G, T = 10^3, 10^6, 10^9, 10^12",
        "token mixing  share of the MACs in depthwise convolutions, SSM layers and attention's products of two tokens",
        "scan          share of the MACs in the scans, 9 E N + E per token and direction; part of token mixing",
        "activations   what autograd keeps for the backward pass, float32, one image, without parameters; multiply by the",
        "              images per device, and add 16 bytes a parameter for weights, gradients and AdamW's two moments",
        "long          L > tau: the quadratic part of a Transformer block, L/(6 D) of the linear one, is the larger",
        "              (arXiv 2405.07992, section 3.2)" + "; causal attention needs half of it: L/(12 D)" * causal,
    ]
    if len(rows) > 1:
        lines.append(f"(+x.x %)      difference to {first.name}, with head to with head, backbone to backbone")
    return "\n".join(lines)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = Parser(
        prog="python -m hypotheses.cost",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="What a network costs, counted without allocating it: parameters, MACs with the scan, memory of the\n"
        "activations in training, and tokens, all for one image; and whether its sequences are long, L > 6 D.",
        usage="python -m hypotheses.cost [task=imagenet] [backbone=NAME[,NAME...]] [size=HxW] [--arms] [--json] [key=value ...]",
        epilog="examples:\n"
        "  python -m hypotheses.cost task=coco backbone=mambaout_small\n"
        "  python -m hypotheses.cost task=imagenet scale=paper backbone=mambaout_tiny --arms\n"
        "  python -m hypotheses.cost task=ade20k backbone=vit_small,vit_small_causal\n"
        "  python -m hypotheses.cost backbone=mambaout_tiny backbone.mixer=ssm backbone.d_state=8 size=384",
    )
    parser.add_argument("--arms", action="store_true", help="all backbones of the same size, against the one named")
    parser.add_argument("--json", action="store_true", help="for machines; bytes and MACs in full")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="task=imagenet, coco or ade20k; backbone=, several with commas; size=HxW or size=N in pixels, by default "
        "the task's; and whatever else python -m hypotheses.run takes",
    )
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    asked = parse(sys.argv[1:] if arguments is None else arguments)
    size, names, overrides = None, [], []
    for override in asked.overrides:
        key, _, value = override.partition("=")
        if key == "size":
            size = value
        elif key == "backbone":
            names += value.split(",")
            if not all(names):
                raise UserError(f"{override}: an empty name; give backbone=NAME, or several with commas")
        else:
            overrides.append(override)
    names = names or [compose(overrides)["backbone"]["name"]]
    if asked.arms:
        names += [arm for name in names for arm in arms_of(name)]
    configs = [compose([*overrides, f"backbone={name}"]) for name in dict.fromkeys(names)]
    task = configs[0]["task"]["name"]
    height, width = image_size(configs[0], size)
    rows = []
    for each in configs:
        network = each["backbone"]
        alone = measure(network, None, height, width)
        if not is_dense(task):
            with_head = measure(network, each["recipe"]["num_classes"], height, width)
        else:
            with_head = whole(each, height, width)
        rows.append(Row(network["name"], alone, with_head, stages(network, height, width)))
    if asked.json:
        networks = [dataclasses.asdict(row) for row in rows]
        print(json.dumps({"task": task, "height": height, "width": width, "images": 1, "networks": networks}, indent=2))
    else:
        # that of each backbone, unless one is named
        scales = list(dict.fromkeys(each["scale"]["name"] for each in configs))
        print(table(rows, task, scales, height, width, [o for o in overrides if o.lstrip("+").startswith("backbone.")]))
    return 0


if __name__ == "__main__":
    with one_line():
        sys.exit(main())
