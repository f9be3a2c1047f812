"""What detection and segmentation share: our backbones in the models of mmdet and mmsegmentation, built from the libraries' own
base configs. What is changed in them stands here, each change with its source.

`mask_rcnn` and `upernet` give a config for the library's registry, as mmengine's runner takes it; `build` makes the network.
mmdet and mmsegmentation are imported when they are needed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hypotheses import backbones
from hypotheses.backbones import weights
from hypotheses.backbones.dense import Dense
from hypotheses.tasks import mmcv_operators

if TYPE_CHECKING:
    from mmengine.config import ConfigDict


class Backbone(Dense):
    """What the registry builds, from a file of conf/backbone/, a seed, stochastic depth, a file of weights or None, and the
    recipe whose switches say how it is computed."""

    def __init__(
        self,
        config: Mapping[str, Any],
        seed: int = 0,
        drop_path: float = 0.0,
        pretrained: str | None = None,
        recipe: Mapping[str, Any] | None = None,
    ):
        with torch.random.fork_rng(devices=[]):  # what is built after it draws the same values whatever the arm
            super().__init__(backbones.build(config, drop_path))
        backbones.compute_as(self.network, recipe or {})
        self.seed, self.init, self.pretrained = seed, config["init"], pretrained

    def init_weights(self) -> None:
        """As mmengine calls it: initial values from the seed, the same in every arm; then the pretrained ones, if any. What
        ImageNet has no weights for, the LayerNorms of the outputs and a pyramid, keeps its initial values."""
        for part in self.children():
            backbones.initialise(part, self.seed, self.init)
        if self.pretrained:
            weights.load(self.network, self.pretrained, backbone_only=True)


@functools.cache
def library(name: str) -> Any:
    """mmdet or mmseg, ready for use: with operators, its classes registered, and ours among mmengine's, which both look into."""
    mmcv_operators.install()
    with quiet():
        module = importlib.import_module(name)
        importlib.import_module(f"{name}.utils").register_all_modules(init_default_scope=False)
    from mmengine.registry import MODELS

    MODELS.register_module(name="Backbone", module=Backbone, force=True)
    return module


def base(name: str, *files: str) -> Any:
    """Base configs that the wheel of mmdet or mmseg contains (models/..., datasets/..., schedules/...), as one."""
    from mmengine.config import Config

    folder = Path(library(name).__file__).parent / ".mim/configs/_base_"
    merged = Config()
    for file in files:
        merged.merge_from_dict(Config.fromfile(folder / file).to_dict())
    return merged


def mask_rcnn(
    backbone: Mapping[str, Any], num_classes: int = 80, changes: Mapping[str, Any] | None = None, **arguments: Any
) -> ConfigDict:
    """Mask R-CNN with a standard FPN (paper, section 4.3) on our backbone. The heads and their training are mmdet's.

    changes    to the base config, nested as it is
    arguments  of `Backbone`
    """
    model: Any = base("mmdet", "models/mask-rcnn_r50_fpn.py").model
    model.backbone = {"type": "Backbone", "config": dict(backbone), **arguments}
    model.neck.in_channels = dense_dims(backbone)
    model.roi_head.bbox_head.num_classes = model.roi_head.mask_head.num_classes = num_classes
    return changed(model, changes or {})


def upernet(
    backbone: Mapping[str, Any], num_classes: int = 150, changes: Mapping[str, Any] | None = None, **arguments: Any
) -> ConfigDict:
    """UPerNet on our backbone (paper, section 4.4), from the config for Swin, as the authors have said that theirs is
    (yuweihao/MambaOut, issue 251). `changes` and `arguments` as in `mask_rcnn`."""
    model: Any = base("mmseg", "models/upernet_swin.py").model
    model.backbone = {"type": "Backbone", "config": dict(backbone), **arguments}
    model.decode_head.num_classes = model.auxiliary_head.num_classes = num_classes
    model = changed(model, changes or {})
    dims = dense_dims(backbone)
    model.decode_head.in_channels, model.auxiliary_head.in_channels = dims, dims[model.auxiliary_head.in_index]
    return model


def settings(run_config: Mapping[str, Any]) -> dict[str, Any]:
    """What `mask_rcnn` and `upernet` need to know of a run's config."""
    recipe = run_config["recipe"]
    return {
        "backbone": run_config["backbone"],
        "num_classes": recipe["num_classes"],
        "changes": recipe["model"],
        "seed": run_config["seed"],
        "drop_path": recipe["drop_path"],
    }


def changed(model: ConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
    from mmengine.config import Config

    merged = Config({"model": model})
    merged.merge_from_dict({"model": dict(changes)})
    return merged.model


def step(pipeline: list[Any], kind: str) -> Any:
    """The step of a pipeline with that `type`."""
    return next(step for step in pipeline if step["type"] == kind)


def dense_dims(backbone: Mapping[str, Any]) -> list[int]:
    with torch.device("meta"):
        return Dense(backbones.build(backbone)).dims


def build(name: str, model: ConfigDict) -> Any:
    """The network of a config of `mask_rcnn` ("mmdet") or `upernet` ("mmseg"), without initial values (`init_weights`)."""
    library(name)
    from mmengine.registry import DefaultScope

    with quiet(), DefaultScope.overwrite_default_scope(name):
        return importlib.import_module(f"{name}.registry").MODELS.build(model)


class Counted(nn.Module):
    """The forward pass of a whole model as the papers count it: of a detector without what chooses proposals, which is no
    matrix product, on as many boxes and masks as it keeps and detects at most (1000 and 100 in the base config); of a
    segmentor without the head that only training has."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Any, ...]:
        maps = self.model.extract_feat(image)
        if not hasattr(self.model, "roi_head"):
            return (maps, self.model.decode_head(maps))
        heads, test, size = self.model.roi_head, self.model.test_cfg, self.model.roi_head.bbox_head.roi_feat_size
        boxes = maps[0].new_empty(test.rpn.max_per_img, maps[0].shape[1], *size)
        masks = maps[0].new_empty(
            test.rcnn.max_per_img, maps[0].shape[1], *heads.mask_roi_extractor.roi_layers[0].output_size
        )
        return (maps, self.model.rpn_head(maps), heads.bbox_head(boxes), heads.mask_head(masks))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, the libraries' advice is not shown, nor what pycocotools prints; errors are."""
    with (
        warnings.catch_warnings(),
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
    ):
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
            sys.stdout.flush()
