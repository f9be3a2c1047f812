"""Uncertainty over images: what a metric would have been on other validation images from the same pool.

Each run keeps what its metrics are made of, image by image, in seed_<k>.npz beside its record:

imagenet  predicted, annotated (N,): the class of each image
ade20k    intersection, union, annotated (N, C): pixels of each class in each image
coco      <kind>_image, _category (D,): detections by category, best score first, for `kind` box and mask; _matched, _ignored
          (D,): a bit for each IoU threshold; _objects (N, K): annotated objects to be found

N images, C or K classes, D detections. A draw of the bootstrap takes N images with replacement, the same ones for both arms of
a pair, and the metric is computed anew from what they hold: AP and mIoU are not means over images.
"""

import dataclasses
import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from hypotheses.errors import UserError
from hypotheses.record import Record, sha256, write_aside

DRAWS, BLOCK = 500, 100  # draws of images, and how many are in the memory at once
IOUS = 10  # thresholds 0.50, 0.55, ... 0.95
RECALLS = np.linspace(0, 1, 101)  # at which COCO reads precision

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Interval:
    """Of a mean difference over seeds: percentiles of the draws of images."""

    low: float
    high: float
    images: int
    draws: int


def path(record_file: Path) -> Path:
    return record_file.with_suffix(".npz")


def write(target: Path, arrays: Arrays) -> str:
    """Keep arrays, the same bytes for the same values; the sha256 of the file."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(arrays):
            part = io.BytesIO()
            np.lib.format.write_array(part, np.ascontiguousarray(arrays[name]), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), part.getvalue(), zipfile.ZIP_DEFLATED)
    write_aside(target, content.getvalue())
    return sha256(target)


def read(record: Record, results: Path) -> Arrays | None:
    """What a run has kept, or None where it has kept nothing. Raises UserError where the file is not the one of the record."""
    known = record["provenance"].get("predictions")
    file = path(results / "records" / f"{record['address']}.json")
    if known is None or not file.exists():
        return None
    if sha256(file) != known:
        raise UserError(
            f"{file} is not what its run has left: delete it and its record, and run the same command again"
        )
    with np.load(file, allow_pickle=False) as archive:
        return dict(archive)


def compare(
    results: Path, metric: str, pairs: Sequence[tuple[Record, Record]], confidence: float, draws: int = DRAWS
) -> Interval | None:
    """The interval over images of the mean over `pairs` (a, b), one of each seed, of metric(a) - metric(b); None where a run has
    kept nothing. Seeds with the same data have the same draws of images."""
    total, images = np.zeros(draws), 0
    for pair in pairs:
        kept = [arrays for r in pair if (arrays := read(r, results))]
        if len(kept) < 2 or metric not in METRICS:
            return None
        images = size(kept[0])
        for start, times in drawn(pair[0], images, draws):
            block = total[start : start + BLOCK]
            block += resampled(metric, kept[0], times) - resampled(metric, kept[1], times)
    low, high = np.quantile(total / len(pairs), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high), images, draws)


def of_one(results: Path, metric: str, one: Record, confidence: float) -> tuple[float, float] | None:
    """The interval over images of a metric of one run; None where it has kept nothing that it is made of."""
    if metric not in METRICS or not (kept := read(one, results)):
        return None
    values = [resampled(metric, kept, times) for _, times in drawn(one, size(kept), DRAWS)]
    low, high = np.quantile(np.concatenate(values), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def drawn(one: Record, images: int, draws: int) -> Iterator[tuple[int, np.ndarray]]:
    """How often each image counts in each draw, (BLOCK, images), block by block with the number of its first draw: the same for all
    runs with the data of this one."""
    rng = np.random.default_rng(int(one["data_fingerprint"][:8], 16))
    for start in range(0, draws, BLOCK):
        size = min(BLOCK, draws - start)
        yield start, rng.multinomial(images, np.full(images, 1 / images), size=size).astype(np.int32)


def size(kept: Arrays) -> int:
    """The number of images."""
    return len(kept[next(name for name in ("annotated", "box_objects") if name in kept)])


def resampled(metric: str, kept: Arrays, times: np.ndarray) -> np.ndarray:
    """A metric in percent, (draws,), where image i counts times[:, i] times; times (draws, N). Raises KeyError for a metric that
    is not made from what is kept."""
    return METRICS[metric](kept, times)


def top1(kept: Arrays, times: np.ndarray) -> np.ndarray:
    return 100 * (times @ (kept["predicted"] == kept["annotated"])) / times.sum(1)


def miou(kept: Arrays, times: np.ndarray) -> np.ndarray:
    intersection, union = times @ kept["intersection"].astype(float), times @ kept["union"].astype(float)
    with np.errstate(invalid="ignore"):  # a class that no image of a draw has is not counted
        return 100 * np.nanmean(intersection / union, axis=1)


def average_precision(kept: Arrays, times: np.ndarray, kind: str, ious: slice) -> np.ndarray:
    """COCO's AP as pycocotools computes it (cocoeval.py, accumulate): precision made monotone from the right and read at 101
    recalls, its mean over those, the IoU thresholds and the categories that have objects."""
    image, category = kept[f"{kind}_image"], kept[f"{kind}_category"]
    bits = np.arange(IOUS)[ious]
    matched, ignored = (
        (kept[f"{kind}_{name}"][:, None] >> bits & 1).astype(np.int32) for name in ("matched", "ignored")
    )
    total, counted = np.zeros(len(times)), np.zeros(len(times))
    for k, objects in enumerate(kept[f"{kind}_objects"].T):
        wanted = times @ objects.astype(np.int32)  # (draws,)
        counted += wanted > 0
        chosen = category == k
        weight = times[:, image[chosen]]  # (draws, detections)
        for t in range(len(bits)):
            counts = 1 - ignored[chosen, t]
            total += precision(weight * (matched[chosen, t] & counts), weight * counts, wanted).mean(1) / len(bits)
    with np.errstate(invalid="ignore"):
        return 100 * total / counted


def precision(right: np.ndarray, all_of_them: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Precision at RECALLS, (draws, 101), of detections in the order of their scores; `right` and `all_of_them` are how often
    each counts, (draws, detections), `wanted` the objects of each draw, (draws,)."""
    read = np.zeros((len(wanted), len(RECALLS)))
    found, shown = np.cumsum(right, 1), np.cumsum(all_of_them, 1)
    if not found.shape[1]:
        return read
    curve = found / np.maximum(shown, 1)
    curve = np.maximum.accumulate(curve[:, ::-1], 1)[:, ::-1]
    for draw in np.flatnonzero(wanted):
        at = np.searchsorted(found[draw] / wanted[draw], RECALLS, side="left")
        reached = at < found.shape[1]
        read[draw, reached] = curve[draw, at[reached]]
    return read


METRICS = {
    "top1_percent": top1,
    "miou_percent": miou,
    **{
        f"{kind}_ap{name}_percent": lambda kept, times, kind=kind, ious=ious: average_precision(kept, times, kind, ious)
        for kind in ("box", "mask")
        for name, ious in (("", slice(None)), ("50", slice(0, 1)), ("75", slice(5, 6)))
    },
}
