"""What a backbone is, and how one is built from its config.

A backbone is an nn.Module: image (B, 3, H, W) in, a list of maps out, finest first, each (B, C_i, H/s_i, W/s_i); it has
`dims` (the C_i) and `strides` (the s_i). It has no head, knows no task, reads no config and no file. A family is one
file: the network, read from top to bottom, and the classification head that its paper gives it.
"""

import functools
import hashlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hypotheses.backbones import gate, norm
from hypotheses.backbones.kernels import compiler
from hypotheses.backbones.mambaout import GatedCNNBlock, MambaOut, MambaOutHead
from hypotheses.backbones.products import bfloat16_products, by_convolution
from hypotheses.backbones.scan import implementation
from hypotheses.backbones.ssm import SSM
from hypotheses.backbones.vit import Block, ViT, ViTHead
from hypotheses.errors import UserError, nearest

FAMILIES: dict[str, tuple[Any, Any]] = {  # name: (backbone, its classification head)
    "mambaout": (MambaOut, MambaOutHead),
    "vit": (ViT, ViTHead),
}
INITS = ("published", "fan_in")


class Classifier(nn.Module):
    """A backbone and a head: image (B, 3, H, W) -> logits (B, num_classes)."""

    def __init__(self, backbone: nn.Module, head: nn.Module):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.backbone(image))

    def of_each_token(self, image: Tensor) -> Tensor:
        """The logits of every token of the last map by itself, where `forward` has those of their mean: (B, num_classes, h, w)."""
        tokens = self.backbone(image)[-1].permute(0, 2, 3, 1)  # (B, h, w, C)
        return self.head([tokens.flatten(0, 2)[..., None, None]]).unflatten(0, tokens.shape[:3]).permute(0, 3, 1, 2)


def build(config: Mapping[str, Any], drop_path: float = 0.0) -> MambaOut | ViT:
    """The backbone of a config (a file of conf/backbone/), with the initial values that PyTorch gives it.

    config     `family` and the arguments of its class; `name`, `init` and `drop_path` (the published rate) are not
               used here
    drop_path  stochastic depth of this training run

    Raises UserError on an unknown family, key or value.
    """
    family = config["family"]
    if family not in FAMILIES:
        raise UserError(f"backbone.family={family}: choose one of {', '.join(FAMILIES)}")
    network = FAMILIES[family][0]
    kwargs = {k: v for k, v in config.items() if k not in ("name", "family", "init", "drop_path")}
    known = set(inspect.signature(network).parameters)
    for key in kwargs:
        if key not in known:
            raise UserError(f"backbone.{key}: {family} has no such key{nearest(key, known)}")
    try:
        return network(**kwargs, drop_path=drop_path)
    except (ValueError, TypeError) as error:
        raise UserError(f"backbone {config['name']}: {error}") from error


def build_classifier(config: Mapping[str, Any], num_classes: int, seed: int, drop_path: float = 0.0) -> Classifier:
    """The backbone of a config under its family's head, initialised from `seed` as `config["init"]` says."""
    backbone = build(config, drop_path)
    model = Classifier(backbone, FAMILIES[config["family"]][1](backbone.dims[-1], num_classes))
    initialise(model, seed, config["init"])
    return model


def compute_as(network: nn.Module, recipe: Mapping[str, Any]) -> None:
    """Let a backbone be computed as a recipe's switches say (conf/config.yaml); parameters and their names stay as they are."""
    if recipe.get("channels_last"):
        network.to(memory_format=torch.channels_last)
    if recipe.get("gradient_checkpointing"):
        for block in network.modules():
            if isinstance(block, GatedCNNBlock | Block):
                block.forward = functools.partial(again_in_backward, block, block.forward)
    if recipe.get("compile"):
        # for each size of images by itself (for any size it fails in the scan), so in training alone: validations have many
        network.forward = functools.partial(
            in_training, network, torch.compile(network.forward, dynamic=False), network.forward
        )


def in_training(
    network: nn.Module, compiled: Callable[[Tensor], Any], plain: Callable[[Tensor], Any], image: Tensor
) -> Any:
    return (compiled if network.training else plain)(image)


def again_in_backward(block: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Gradient checkpointing: of a block's forward pass its input alone is kept, and in the backward pass it is computed again, with the
    same draws of stochastic depth."""
    if block.training and torch.is_grad_enabled():
        return checkpoint(forward, x, use_reentrant=False)  # type: ignore[return-value]
    return forward(x)


@torch.no_grad()
def initialise(model: nn.Module, seed: int, init: str) -> None:
    """Give every layer its initial values, drawn from a stream of its own, keyed by `seed` and the layer's name.

    So two networks that share a layer start with the same values in it, whatever other layers they have. Weights of Linear
    layers and convolutions, transposed ones too, are truncated normal and their biases zero; their deviation is

        published   0.02, as in MambaOut's and DeiT's code
        fan_in      1 / sqrt(inputs of a unit), for the narrow networks of the demo: with 0.02 a network of 48 channels
                    starts nearly disconnected, and when it wakes up decides its accuracy on a short schedule

    A layer with a method `init_weights(generator)` does its own. All is drawn on the CPU, wherever the layer is: the values are
    the same on every device.
    """
    if init not in INITS:
        raise UserError(f"backbone.init={init}: choose one of {', '.join(INITS)}")
    for name, module in model.named_modules():
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        if own := getattr(module, "init_weights", None):
            own(generator)
        elif isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            inputs = module.in_channels if isinstance(module, nn.ConvTranspose2d) else module.weight[0].numel()
            std = 0.02 if init == "published" else inputs**-0.5
            # into an empty tensor: values are drawn in the order of the memory, which channels_last changes
            module.weight.copy_(nn.init.trunc_normal_(torch.empty(module.weight.shape), std=std, generator=generator))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()


def kernels_used(config: Mapping[str, Any], device: str, precision: str = "32-true") -> dict[str, str]:
    """By which way the parts of a backbone are computed in float32 on "cpu" or "cuda": `linear`, `scan` where it has one, `gate`
    and `norm` for a MambaOut; the compiler of those that are compiled; and on a CPU, under a mixed `precision`, what multiplies
    its bfloat16. They agree to rounding only."""
    network = build(config)
    sample = torch.empty(1, 1, 1, network.dims[0], device=device)
    used = {"linear": "convolution" if by_convolution(sample) else "linear"}
    if precision == "bf16-mixed" and device == "cpu":
        used["bfloat16"] = "oneDNN" if bfloat16_products() else "by float32"
    for module in network.modules():
        if isinstance(module, SSM):
            used["scan"] = implementation(sample, module.d_state, module.memory)
        elif isinstance(module, GatedCNNBlock):
            conv = module.conv if module.mixer != "identity" else None
            used["gate"] = "cpp" if gate.fused(sample, conv) else "plain"
            used["norm"] = "cpp" if norm.fused(sample, module.norm) else "plain"
    return used | ({"compiler": compiler()} if "cpp" in used.values() else {})


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser: biases, norms and the SSM's A, D and dt bias are not decayed."""
    decayed, free = [], []
    for parameter in model.parameters():
        exempt = parameter.ndim <= 1 or getattr(parameter, "no_weight_decay", False)
        (free if exempt else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
