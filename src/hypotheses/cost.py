"""What a network costs: parameters and multiply-accumulates (MACs), counted without allocating it.

Convention, that of fvcore's counter and so of the papers' tables: a multiply-add of a matrix product or a convolution is
one, a LayerNorm 5 per element, biases and activations nothing. The scan counts 9 E N + E per token and direction
(`SSM.macs`), which no generic counter sees.
"""

from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hypotheses.backbones import FAMILIES, Classifier, build
from hypotheses.backbones.ssm import SSM
from hypotheses.config import Config


def count(backbone: dict[str, Any], num_classes: int, height: int, width: int) -> dict[str, int]:
    """params and macs of a backbone with its classification head, for one image of height x width pixels."""
    with torch.device("meta"):
        network = build(backbone)
        model = Classifier(network, FAMILIES[backbone["family"]][1](network.dims[-1], num_classes))
        image = torch.empty(1, 3, height, width)
    hooked = 0

    def add(module: nn.Module, inputs: tuple[torch.Tensor, ...], _: torch.Tensor) -> None:
        nonlocal hooked
        x = inputs[0]
        hooked += module.macs(tokens=x.shape[1] * x.shape[2]) if isinstance(module, SSM) else 5 * x.numel()

    for module in model.modules():
        if isinstance(module, SSM | nn.LayerNorm):
            module.register_forward_hook(add)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(image)
    return {
        "params": sum(p.numel() for p in model.parameters()),
        "macs": counter.get_total_flops() // 2 + hooked,  # torch counts a multiply-add as two
    }


def of_run(config: Config) -> dict[str, int]:
    """params and macs of a run's network at its image size."""
    recipe = config["recipe"]
    return count(config["backbone"], recipe["num_classes"], recipe["image_size"], recipe["image_size"])
