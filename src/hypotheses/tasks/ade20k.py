"""Semantic segmentation: UPerNet by mmsegmentation on ADE20K, or on the demo's scenes in the same layout.

From mmsegmentation's own base configs for UPerNet with Swin, ADE20K and the schedule of 160k iterations; what is changed in
them is here, with its values in conf/recipe/ade20k_*.yaml, where each says its source.
"""

import copy
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hypotheses import metrics
from hypotheses.config import SWITCHES, Config
from hypotheses.data.scenes import SEGMENTS
from hypotheses.errors import UserError
from hypotheses.tasks import Run, dense, openmmlab
from hypotheses.tasks.common import divide, world_size
from hypotheses.tasks.dense import Job, curve, pictures, predictions, train, validate_some

__all__ = ["build", "curve", "evaluate", "fit", "model", "network", "pictures", "predictions", "train", "validate_some"]


def build(run: Run) -> Job:
    openmmlab.library("mmseg")
    from mmseg.datasets import ADE20KDataset
    from mmseg.evaluation import IoUMetric

    class Scenes(ADE20KDataset):
        """The demo's scenes, in ADE20K's layout, have other classes."""

        METAINFO: ClassVar = {"classes": SEGMENTS, "palette": [dense.color(k) for k in range(len(SEGMENTS))]}

    datasets = (ADE20KDataset, Scenes)
    job = dense.build(run, dense.Setup("mmseg", config(run), datasets, IoUMetric, keep, draw, None))
    if run.config["mode"]["name"] == "train":
        check_batch(run.config, dense.unwrapped(job.runner.model))
    return job


def check_batch(config: Config, model: nn.Module) -> None:
    """Raise where a norm of batches would have one image, pooled to one pixel, to learn from: it has no variance."""
    images = divide(config["recipe"]["batch_size"], world_size(), config["hardware"]["max_batch_per_device"]).images
    alone = [
        norm
        for branch in model.modules()
        if isinstance(branch, nn.Sequential) and getattr(next(iter(branch), None), "output_size", None) in (1, (1, 1))
        for norm in branch.modules()
        if isinstance(norm, _BatchNorm) and not (isinstance(norm, nn.SyncBatchNorm) and world_size() > 1)
    ]
    if images == 1 and alone:
        raise UserError(
            "one image at a time gives UPerNet's BatchNorm after pooling to one pixel nothing to learn from: have at least 2, by "
            "recipe.batch_size and hardware.max_batch_per_device; recipe.gradient_checkpointing=true saves memory instead"
        )


def model(run_config: Config, **arguments: Any) -> Any:
    """mmsegmentation's config of the network of a run."""
    found: Any = openmmlab.upernet(**openmmlab.settings(run_config), **arguments)
    found.data_preprocessor.size = tuple(run_config["recipe"]["crop"])
    return found


def network(run_config: Config) -> Any:
    """The network of a run, without initial values."""
    return openmmlab.build("mmseg", model(run_config))


def fit(run_config: Config) -> str:
    """The sha256 of the config's weights. Raises UserError where they do not fit its network."""
    return dense.fit(run_config, network(run_config))


def config(run: Run) -> Any:
    """mmengine's config of a run."""
    recipe, schedule = run.config["recipe"], run.config["recipe"]["schedule"]
    cfg = openmmlab.base("mmseg", "datasets/ade20k.py", "schedules/schedule_160k.py")
    cfg.model = model(run.config, pretrained=run.pretrained, recipe={k: recipe[k] for k in SWITCHES if k in recipe})
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.data_root = str(run.images.root)
        if recipe["data"]["source"] == "scenes":
            loader.dataset.type = "Scenes"
    pipeline = cfg.train_dataloader.dataset.pipeline
    openmmlab.step(pipeline, "RandomResize").update(scale=tuple(recipe["resize"]), ratio_range=tuple(recipe["ratios"]))
    openmmlab.step(pipeline, "RandomCrop").crop_size = tuple(recipe["crop"])
    openmmlab.step(pipeline, "RandomFlip").prob = recipe["flip"]
    if not recipe["photometric"]:
        pipeline.remove(openmmlab.step(pipeline, "PhotoMetricDistortion"))
    openmmlab.step(cfg.val_dataloader.dataset.pipeline, "Resize").scale = tuple(recipe["resize"])
    if recipe["multi_scale"]:
        cfg.test_dataloader = copy.deepcopy(cfg.val_dataloader)
        cfg.test_dataloader.dataset.pipeline = variants(recipe)
    cfg.train_cfg |= {"max_iters": recipe["steps"], "val_interval": recipe["validate_every"]}
    warmup = schedule["warmup_steps"]
    cfg.param_scheduler = [
        {"type": "LinearLR", "start_factor": schedule["warmup_factor"], "by_epoch": False, "begin": 0, "end": warmup},
        {
            "type": "PolyLR",
            "eta_min": 0.0,
            "power": schedule["power"],
            "begin": warmup,
            "end": recipe["steps"],
            "by_epoch": False,
        },
    ]
    return cfg


def evaluate(job: Job) -> dict[str, float]:
    """The metrics on images at the recipe's size; with recipe.multi_scale also the mIoU of the mean prediction over sizes
    and, if asked for, mirror images."""
    found = dense.evaluate(job)
    if job.run.config["recipe"]["multi_scale"]:
        found["miou_multi_scale_percent"] = multi_scale(job)
    return found


def multi_scale(job: Job) -> float:
    """mIoU in percent of the mean of the class probabilities over recipe.multi_scale's sizes and mirror images."""
    from mmseg.models import SegTTAModel

    model = job.runner.model
    job.runner.model = SegTTAModel(module=dense.unwrapped(model))
    try:
        with openmmlab.quiet():
            return metrics.ours("ade20k", job.runner.test())["miou_percent"]
    finally:
        job.runner.model = model


def variants(recipe: Config) -> list[Any]:
    """The pipeline of an evaluation at several sizes, which are shares of recipe.resize, and mirrored."""
    width, height = recipe["resize"]
    sizes = [(round(width * share), round(height * share)) for share in recipe["multi_scale"]["scales"]]
    mirrored = (0.0, 1.0) if recipe["multi_scale"]["flip"] else (0.0,)
    transforms = [
        [{"type": "Resize", "scale": size, "keep_ratio": True} for size in sizes],
        [{"type": "RandomFlip", "prob": prob, "direction": "horizontal"} for prob in mirrored],
        [{"type": "LoadAnnotations", "reduce_zero_label": True}],
        [{"type": "PackSegInputs"}],
    ]
    return [{"type": "LoadImageFromFile"}, {"type": "TestTimeAug", "transforms": transforms}]


def keep(metric: Any) -> dict[str, np.ndarray]:
    """Pixels of each class in each image."""
    counts = [torch.stack(parts).round().int().numpy() for parts in zip(*metric.kept, strict=True)]
    return dict(zip(("intersection", "union", "predicted", "annotated"), counts, strict=True))


def draw(image: Tensor, sample: Any, predicted: bool, names: list[str]) -> Tensor:
    """The classes of the pixels in colours on an image (3, H, W) uint8: the annotation's, or the predicted ones."""
    from torchvision.utils import draw_segmentation_masks

    classes = (sample.pred_sem_seg if predicted else sample.gt_sem_seg).data[0]
    image, classes = dense.enlarged(image, classes)
    present = [label for label in classes.unique().tolist() if label < len(names)]
    if not present:
        return image
    masks = torch.stack([classes == label for label in present])
    return draw_segmentation_masks(image, masks, alpha=0.6, colors=[dense.color(label) for label in present])
