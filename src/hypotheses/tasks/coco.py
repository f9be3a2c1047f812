"""Object detection and instance segmentation: Mask R-CNN by mmdet on COCO, or on the demo's scenes in the same layout.

From mmdet's own base configs for Mask R-CNN, COCO and the 1x schedule; what is changed in them is here, with its values in
conf/recipe/coco_*.yaml, where each says its source. mmdet puts images of like shape into a batch, each process those of its own
share: with images of several shapes the global batches depend on the number of processes.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hypotheses.config import SWITCHES, Config
from hypotheses.data.layouts import COCO
from hypotheses.tasks import Run, dense, openmmlab
from hypotheses.tasks.dense import Job, curve, evaluate, pictures, predictions, train, validate_some

__all__ = ["build", "curve", "evaluate", "fit", "model", "network", "pictures", "predictions", "train", "validate_some"]

SHOWN = 0.5  # score from which on a detection is drawn


def build(run: Run) -> Job:
    openmmlab.library("mmdet")
    from mmdet.datasets import AspectRatioBatchSampler, CocoDataset
    from mmdet.evaluation import CocoMetric

    parts = (CocoDataset,), CocoMetric, keep, draw, AspectRatioBatchSampler
    return dense.build(run, dense.Setup("mmdet", config(run), *parts))


def model(run_config: Config, **arguments: Any) -> Any:
    """mmdet's config of the network of a run."""
    return openmmlab.mask_rcnn(**openmmlab.settings(run_config), **arguments)


def network(run_config: Config) -> Any:
    """The network of a run, without initial values."""
    return openmmlab.build("mmdet", model(run_config))


def fit(run_config: Config) -> str:
    """The sha256 of the config's weights. Raises UserError where they do not fit its network."""
    return dense.fit(run_config, network(run_config))


def config(run: Run) -> Any:
    """mmengine's config of a run."""
    recipe, schedule, root = run.config["recipe"], run.config["recipe"]["schedule"], str(run.images.root)
    cfg = openmmlab.base("mmdet", "datasets/coco_instance.py", "schedules/schedule_1x.py")
    cfg.model = model(run.config, pretrained=run.pretrained, recipe={k: recipe[k] for k in SWITCHES if k in recipe})
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.data_root = root
        if recipe["data"]["source"] == "scenes":
            loader.dataset.metainfo = {"classes": run.images.classes}
        openmmlab.step(loader.dataset.pipeline, "Resize").scale = tuple(recipe["resize"])
    cfg.val_evaluator.ann_file = f"{root}/{COCO['val'][0]}"
    openmmlab.step(cfg.train_dataloader.dataset.pipeline, "RandomFlip").prob = recipe["flip"]
    cfg.train_cfg |= {"max_epochs": recipe["epochs"], "val_interval": recipe["validate_every"]}
    warmup, steps = cfg.param_scheduler
    warmup |= {"start_factor": schedule["warmup_factor"], "end": schedule["warmup_steps"]}
    steps |= {"end": recipe["epochs"], "milestones": schedule["milestones"], "gamma": schedule["gamma"]}
    return cfg


def keep(metric: Any) -> dict[str, np.ndarray]:
    """Which detections of each category are right, at every IoU threshold, by pycocotools: those of all sizes, and as many in an
    image as the metric counts."""
    from pycocotools.cocoeval import COCOeval

    kept: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = metric.results2json([found for _, found in metric.kept], f"{folder}/found")
        for kind, theirs in (("box", "bbox"), ("mask", "segm")):
            found = json.loads(Path(files[theirs]).read_text())
            for detection in found if theirs == "segm" else ():
                del detection["bbox"]  # as mmdet does
            kept |= {f"{kind}_{name}": array for name, array in matches(metric, found, theirs, COCOeval).items()}
    return kept


def matches(metric: Any, found: list[Any], theirs: str, evaluator: Any) -> dict[str, np.ndarray]:
    """The arrays of one kind, of detections in COCO's format."""
    images, categories = list(metric.img_ids), list(metric.cat_ids)
    objects = np.zeros((len(images), len(categories)), np.uint16)
    parts: list[list[np.ndarray]] = []
    if found:
        judge = evaluator(metric._coco_api, metric._coco_api.loadRes(found), theirs)
        judge.params.imgIds, judge.params.catIds = images, categories
        judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
        judge.params.maxDets = [metric.proposal_nums[0]]
        judge.evaluate()
        place = {
            "image": {id: i for i, id in enumerate(images)},
            "category": {id: i for i, id in enumerate(categories)},
        }
        bits = 1 << np.arange(len(judge.params.iouThrs))[:, None]
        for one in judge.evalImgs:
            if one is None:  # neither objects nor detections
                continue
            i, k = place["image"][one["image_id"]], place["category"][one["category_id"]]
            objects[i, k] = np.sum(np.array(one["gtIgnore"]) == 0)
            scores = np.array(one["dtScores"])
            matched, ignored = ((np.array(one[name]).astype(bool) * bits).sum(0) for name in ("dtMatches", "dtIgnore"))
            parts.append([np.full(len(scores), i), np.full(len(scores), k), matched, ignored, scores])
    else:  # mmdet has no evaluator of nothing
        for number, id in enumerate(images):
            for annotation in metric._coco_api.loadAnns(metric._coco_api.getAnnIds(imgIds=[id], iscrowd=False)):
                if annotation["category_id"] in categories:
                    objects[number, categories.index(annotation["category_id"])] += 1
    image, category, matched, ignored, scores = (
        np.concatenate(part) if parts else np.zeros(0, int)
        for part in (zip(*parts, strict=True) if parts else [()] * 5)
    )
    order = np.lexsort((image, -scores, category))  # equal scores in the order of the images, as pycocotools has them
    return {
        "image": image[order].astype(np.uint32),
        "category": category[order].astype(np.uint16),
        "matched": matched[order].astype(np.uint16),
        "ignored": ignored[order].astype(np.uint16),
        "objects": objects,
    }


def draw(image: Tensor, sample: Any, predicted: bool, names: list[str]) -> Tensor:
    """Boxes, masks and class names on an image (3, H, W) uint8: the annotation's, or the predictions of SHOWN and more."""
    from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

    found = sample.pred_instances if predicted else sample.gt_instances
    if predicted:
        found = found[found.scores >= SHOWN]
    masks = found.masks if predicted else found.masks.to_tensor(torch.bool, "cpu")
    size = image.shape[-1]
    image, masks = dense.enlarged(image, masks)
    if not len(masks):
        return image
    boxes = found.bboxes if isinstance(found.bboxes, Tensor) else found.bboxes.tensor
    labels = found.labels.tolist()
    colors = [dense.color(label) for label in labels]
    texts = [names[label] for label in labels]
    if predicted:
        texts = [f"{text} {score:.0%}" for text, score in zip(texts, found.scores.tolist(), strict=True)]
    image = draw_segmentation_masks(image, masks, alpha=0.5, colors=colors)
    return draw_bounding_boxes(image, boxes * (image.shape[-1] / size), texts, colors, label_colors="white")
