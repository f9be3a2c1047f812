"""Every metric of a record, in one place: its name with its unit, how people call it, and the library's name for it.

Metrics that are shares are in percent, and differences of them in points. mmdet rounds AP to 0.1 point and mmsegmentation IoU
to 0.01, which `step` says: a margin that is not well above it could not be decided.
"""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Metric:
    """title  in tables and figures, without its unit
    theirs    the library's name for it, if it has one, and `factor` from the library's unit to ours
    step      what the library rounds to, in our unit; 0 where it does not"""

    title: str
    theirs: str = ""
    factor: float = 1.0
    step: float = 0.0


METRICS = {
    "imagenet": {
        "top1_percent": Metric("top-1"),
        "top5_percent": Metric("top-5"),
    },
    "recall": {
        "top1_percent": Metric("top-1 at the last token"),
    },
    "coco": {
        "box_ap_percent": Metric("box AP", "coco/bbox_mAP", 100, 0.1),
        "box_ap50_percent": Metric("box AP at IoU 0.5", "coco/bbox_mAP_50", 100, 0.1),
        "box_ap75_percent": Metric("box AP at IoU 0.75", "coco/bbox_mAP_75", 100, 0.1),
        "mask_ap_percent": Metric("mask AP", "coco/segm_mAP", 100, 0.1),
        "mask_ap50_percent": Metric("mask AP at IoU 0.5", "coco/segm_mAP_50", 100, 0.1),
        "mask_ap75_percent": Metric("mask AP at IoU 0.75", "coco/segm_mAP_75", 100, 0.1),
    },
    "ade20k": {
        "miou_percent": Metric("mIoU", "mIoU", 1, 0.01),
        "pixel_accuracy_percent": Metric("pixel accuracy", "aAcc", 1, 0.01),
        "mean_accuracy_percent": Metric("mean accuracy of the classes", "mAcc", 1, 0.01),
        "miou_multi_scale_percent": Metric("mIoU, multi-scale", step=0.01),
    },
}
MARGIN_STEPS = 5  # a margin is at least this many steps of its metric


def ours(task: str, found: Mapping[str, float]) -> dict[str, float]:
    """A library's metrics under our names and in our units. mmdet leaves AP out where nothing was detected: it is 0."""
    if task == "coco":
        found = dict.fromkeys((m.theirs for m in METRICS[task].values()), 0.0) | dict(found)
    return {name: round(m.factor * float(found[m.theirs]), 3) for name, m in METRICS[task].items() if m.theirs}
