"""What detection and segmentation share: our backbones in the models of mmdet and mmsegmentation, built from the libraries' own
base configs. What is changed in them stands here, each change with its source.

`mask_rcnn` and `upernet` give a config for the library's registry, as mmengine's runner takes it; `build` makes the network.
mmdet and mmsegmentation are imported when they are needed.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hypotheses import backbones
from hypotheses.backbones.dense import Dense
from hypotheses.tasks import mmcv_operators

if TYPE_CHECKING:
    from mmengine.config import ConfigDict

# proposals of one image in the papers' counts of MACs: what the base config keeps for the box head, and detects at most
BOX_PROPOSALS, MASK_PROPOSALS = 1000, 100


class Backbone(Dense):
    """What the registry builds: {"type": "Backbone", "config": a file of conf/backbone/, "seed": ..., "drop_path": ...}."""

    def __init__(self, config: Mapping[str, Any], seed: int = 0, drop_path: float = 0.0):
        with torch.random.fork_rng(devices=[]):  # what is built after it draws the same values whatever the arm
            super().__init__(backbones.build(config, drop_path))
        self.seed, self.init = seed, config["init"]

    def init_weights(self) -> None:
        """As mmengine calls it: initial values from the seed, the same in every arm."""
        for part in self.children():
            backbones.initialise(part, self.seed, self.init)


@functools.cache
def library(name: str) -> Any:
    """mmdet or mmseg, ready for use: with operators, its classes registered, and ours among mmengine's, which both look into."""
    mmcv_operators.install()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = importlib.import_module(name)
        importlib.import_module(f"{name}.utils").register_all_modules(init_default_scope=False)
    from mmengine.registry import MODELS

    MODELS.register_module(name="Backbone", module=Backbone, force=True)
    return module


def base(name: str, file: str) -> Any:
    """`model` of a base config that the wheel of mmdet or mmseg contains."""
    from mmengine.config import Config

    return Config.fromfile(Path(library(name).__file__).parent / ".mim/configs/_base_/models" / file).model


def mask_rcnn(backbone: Mapping[str, Any], num_classes: int = 80, seed: int = 0, drop_path: float = 0.0) -> ConfigDict:
    """Mask R-CNN with a standard FPN (paper, section 4.3) on our backbone. The heads and their training are mmdet's."""
    model: Any = base("mmdet", "mask-rcnn_r50_fpn.py")
    model.backbone = {"type": "Backbone", "config": dict(backbone), "seed": seed, "drop_path": drop_path}
    model.neck.in_channels = dense_dims(backbone)
    model.roi_head.bbox_head.num_classes = model.roi_head.mask_head.num_classes = num_classes
    return model


def upernet(backbone: Mapping[str, Any], num_classes: int = 150, seed: int = 0, drop_path: float = 0.0) -> ConfigDict:
    """UPerNet on our backbone (paper, section 4.4), from the config for Swin, as the authors have said that theirs is
    (yuweihao/MambaOut, issue 251)."""
    model: Any = base("mmseg", "upernet_swin.py")
    dims = dense_dims(backbone)
    model.backbone = {"type": "Backbone", "config": dict(backbone), "seed": seed, "drop_path": drop_path}
    model.decode_head.in_channels, model.auxiliary_head.in_channels = dims, dims[2]
    model.decode_head.num_classes = model.auxiliary_head.num_classes = num_classes
    return model


def dense_dims(backbone: Mapping[str, Any]) -> list[int]:
    with torch.device("meta"):
        return Dense(backbones.build(backbone)).dims


def build(name: str, model: ConfigDict) -> Any:
    """The network of a config of `mask_rcnn` ("mmdet") or `upernet` ("mmseg"), without initial values (`init_weights`)."""
    library(name)
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope(name):
        return importlib.import_module(f"{name}.registry").MODELS.build(model)


class Counted(nn.Module):
    """The forward pass of a whole model as the papers count it: of a detector without what chooses proposals, which is no
    matrix product, on BOX_PROPOSALS and MASK_PROPOSALS of them; of a segmentor without the head that only training has."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Any, ...]:
        maps = self.model.extract_feat(image)
        if not hasattr(self.model, "roi_head"):
            return (maps, self.model.decode_head(maps))
        heads, size = self.model.roi_head, self.model.roi_head.bbox_head.roi_feat_size
        boxes = maps[0].new_empty(BOX_PROPOSALS, maps[0].shape[1], *size)
        masks = maps[0].new_empty(MASK_PROPOSALS, maps[0].shape[1], *heads.mask_roi_extractor.roi_layers[0].output_size)
        return (maps, self.model.rpn_head(maps), heads.bbox_head(boxes), heads.mask_head(masks))
