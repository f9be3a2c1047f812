"""Our backbones in whole detectors and segmentors: sizes as published, every backbone, shared initial values."""

import pytest
import torch

from hypotheses import cost
from hypotheses.config import compose
from hypotheses.tasks import openmmlab

# paper (arXiv 2405.07992), tables 2 and 3: millions of parameters and GMACs, whole model, 800 x 1280 and 512 x 2048 pixels
PUBLISHED = {
    ("coco", "tiny"): (43, 262),
    ("coco", "small"): (65, 354),
    ("coco", "base"): (100, 495),
    ("ade20k", "tiny"): (54, 938),
    ("ade20k", "small"): (76, 1032),
    ("ade20k", "base"): (112, 1178),
}


def backbone(name: str) -> dict:
    return compose([f"backbone={name}"])["backbone"]


def whole(task: str, name: str, **changes: int) -> torch.nn.Module:
    if task == "coco":
        return openmmlab.build("mmdet", openmmlab.mask_rcnn(backbone(name), **changes))
    return openmmlab.build("mmseg", openmmlab.upernet(backbone(name), **changes))


@pytest.mark.parametrize(("task", "size"), PUBLISHED, ids=str)
def test_whole_models_have_the_published_size(task, size):
    """Within 1 % in parameters and 2 % in MACs; and, since the paper rounds to whole numbers, half a unit."""
    params, gmacs = PUBLISHED[task, size]
    height, width = (800, 1280) if task == "coco" else (512, 2048)
    with torch.device("meta"):
        model = whole(task, f"mambaout_{size}")
        image = torch.empty(1, 3, height, width)
    counted = sum(p.numel() for p in model.parameters()) / 1e6
    assert abs(counted - params) <= 0.01 * params
    found = cost.macs(openmmlab.Counted(model), image).total / 1e9
    assert abs(found - gmacs) <= 0.02 * gmacs


@pytest.mark.parametrize("task", ["coco", "ade20k"])
@pytest.mark.parametrize("name", ["mambaout_femto_ssm", "mambaout_atto", "vit_tiny_causal"])  # all: test_dense.py
def test_every_kind_of_backbone_fits(name, task):
    with torch.device("meta"):
        maps = whole(task, name).extract_feat(torch.empty(1, 3, 64, 96))
    strides = (4, 8, 16, 32, 64) if task == "coco" else (4, 8, 16, 32)  # Mask R-CNN's neck adds one
    assert [x.shape[-1] for x in maps] == [-(-96 // stride) for stride in strides]


@pytest.mark.parametrize("task", ["coco", "ade20k"])
def test_arms_share_the_initial_values_of_a_seed(task):
    found = []
    for name, seed in (("mambaout_atto", 3), ("mambaout_atto_ssm", 3), ("mambaout_atto", 4)):
        torch.manual_seed(seed)  # as mmengine's runner does; the heads draw from PyTorch's generator, here and there
        model = whole(task, name, num_classes=10, seed=seed)
        model.init_weights()
        found.append(model.state_dict())
    control, treated, other = found
    assert control.keys() < treated.keys()
    assert all(torch.equal(control[key], treated[key]) for key in control)
    assert not torch.equal(
        control["backbone.network.stages.0.0.fc1.weight"], other["backbone.network.stages.0.0.fc1.weight"]
    )
