"""Metrics of resampled images: each is the library's own on images that are really there so many times."""

import contextlib
import io
import types

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from hypotheses import bootstrap, record
from hypotheses.errors import UserError
from hypotheses.tasks import ade20k, coco

IMAGES, CATEGORIES = 9, 3


def api(images, annotations):
    with contextlib.redirect_stdout(io.StringIO()):
        found = COCO()
    found.dataset = {
        "images": [{"id": i, "height": 64, "width": 64} for i in images],
        "annotations": [a | {"id": n + 1} for n, a in enumerate(annotations)],
        "categories": [{"id": 10 * (k + 1), "name": str(k)} for k in range(CATEGORIES)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        found.createIndex()
    return found


def boxes(rng, number):
    corner = rng.uniform(0, 40, (number, 2))
    return [[*c, *s] for c, s in zip(corner, rng.uniform(6, 20, (number, 2)), strict=True)]


@pytest.fixture(scope="module")
def scenes():
    """Objects, one in six a crowd, and detections near most of them, by image: (annotations, detections)."""
    rng = np.random.default_rng(0)
    annotations, detections = [], []
    for image in range(1, IMAGES + 1):
        for box in boxes(rng, rng.integers(0, 6)):
            category = 10 * int(rng.integers(1, CATEGORIES + 1))
            annotations.append(
                {
                    "image_id": image,
                    "category_id": category,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(rng.random() < 1 / 6),
                }
            )
            near = list(np.array(box) + rng.normal(0, 1.5, 4))
            if rng.random() < 0.8:
                score = round(float(rng.random()), 1)  # some scores are equal
                detections.append({"image_id": image, "category_id": category, "bbox": near, "score": score})
        for box in boxes(rng, 2):
            category = 10 * int(rng.integers(1, CATEGORIES + 1))
            detections.append({"image_id": image, "category_id": category, "bbox": box, "score": float(rng.random())})
    return annotations, detections


def evaluated(annotations, detections, times):
    """AP, AP50 and AP75 in percent by pycocotools, with image i there times[i] times under ids of their own."""
    # copies of an image stand side by side, so that equal scores have the order that they have in it
    copies = [(i + 1, 1000 * (i + 1) + n) for i, count in enumerate(times) for n in range(count)]

    def copied(rows):
        return [r | {"image_id": new} for old, new in copies for r in rows if r["image_id"] == old]

    with contextlib.redirect_stdout(io.StringIO()):
        truth = api([new for _, new in copies], copied(annotations))
        judge = COCOeval(truth, truth.loadRes(copied(detections)), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return 100 * judge.stats[:3]


def kept(annotations, detections):
    metric = types.SimpleNamespace(
        _coco_api=api(range(1, IMAGES + 1), annotations),
        img_ids=list(range(1, IMAGES + 1)),
        cat_ids=[10 * (k + 1) for k in range(CATEGORIES)],
        proposal_nums=(100, 300, 1000),
    )
    with contextlib.redirect_stdout(io.StringIO()):
        arrays = coco.matches(metric, [dict(d) for d in detections], "bbox", COCOeval)
    return {f"box_{name}": array for name, array in arrays.items()}


@pytest.mark.parametrize("seed", range(6))
def test_ap_of_a_draw_is_that_of_pycocotools_on_the_copied_images(scenes, seed):
    arrays = kept(*scenes)
    rng = np.random.default_rng(seed)
    times = np.ones(IMAGES, int) if seed == 0 else rng.multinomial(IMAGES, np.full(IMAGES, 1 / IMAGES))
    expected = evaluated(*scenes, times)
    assert expected[0] > 5
    for name, value in zip(("box_ap_percent", "box_ap50_percent", "box_ap75_percent"), expected, strict=True):
        assert bootstrap.resampled(name, arrays, times[None])[0] == pytest.approx(value, abs=1e-6)


def test_without_any_detection_ap_is_0(scenes):
    annotations, _ = scenes
    arrays = kept(annotations, [])
    assert arrays["box_objects"].sum() == sum(not a["iscrowd"] for a in annotations)
    assert bootstrap.resampled("box_ap_percent", arrays, np.ones((1, IMAGES), int))[0] == 0


def test_miou_of_a_draw_is_that_of_mmsegmentation_on_the_copied_images():
    from mmseg.evaluation import IoUMetric

    rng = torch.Generator().manual_seed(0)
    pairs = [torch.randint(0, 4, (2, 16, 16), generator=rng) for _ in range(5)]
    parts = [IoUMetric.intersect_and_union(a, b, 5, 255) for a, b in pairs]  # the fifth class is nowhere
    arrays = ade20k.keep(types.SimpleNamespace(kept=parts))
    times = np.array([[1, 1, 1, 1, 1], [0, 3, 0, 2, 0]])
    for row, value in zip(times, bootstrap.resampled("miou_percent", arrays, times), strict=True):
        copies = [part for part, count in zip(parts, row, strict=True) for _ in range(count)]
        total = [sum(part[i] for part in copies) for i in range(4)]
        expected = IoUMetric.total_area_to_metrics(*total, ["mIoU"])["IoU"]
        assert value == pytest.approx(100 * np.nanmean(expected), abs=1e-4)


# ---- from records ----------------------------------------------------------------------------------------------------


@pytest.fixture
def pairs(tmp_path, make_records):
    """Two arms over three seeds of 400 images: the second is right on every image of the first, and on one in ten more."""
    rng, records = np.random.default_rng(0), make_records({"mambaout_atto": [0.0] * 3, "mambaout_atto_ssm": [0.0] * 3})
    for seed in range(3):
        annotated = rng.integers(0, 10, 400).astype(np.uint16)
        wrong = rng.random(400) < 0.3
        mended = wrong & (np.arange(400) % 3 == 0)
        for arm, mistakes in (("mambaout_atto", wrong), ("mambaout_atto_ssm", wrong & ~mended)):
            r = records[arm, seed]
            r["data_fingerprint"] = f"{seed:08x}"
            arrays = {"predicted": (annotated + mistakes) % 10, "annotated": annotated}
            file = bootstrap.path(tmp_path / "records" / f"{r['address']}.json")
            r["provenance"]["predictions"] = bootstrap.write(file, arrays)
    return tmp_path, [(records["mambaout_atto_ssm", s], records["mambaout_atto", s]) for s in range(3)]


def test_the_interval_is_that_of_the_paired_images(pairs):
    results, of_seeds = pairs
    found = bootstrap.compare(results, "top1_percent", of_seeds, 0.96, draws=4000)
    gains = []
    for a, b in of_seeds:
        right = [(k["predicted"] == k["annotated"]) for k in (bootstrap.read(a, results), bootstrap.read(b, results))]
        gains.append(100 * (right[0].astype(float) - right[1]))
    mean, error = np.mean(gains), np.sqrt(sum(g.var() / 400 for g in gains)) / 3
    assert (found.low, found.high) == pytest.approx((mean - 2.054 * error, mean + 2.054 * error), abs=0.25 * error)
    assert (found.images, found.draws) == (400, 4000)
    assert bootstrap.compare(results, "top1_percent", of_seeds, 0.96) == bootstrap.compare(
        results, "top1_percent", of_seeds, 0.96
    )


def test_seeds_on_the_same_images_have_the_same_draws(pairs):
    """Then more seeds say nothing new about the images, and the interval stays as wide."""
    results, of_seeds = pairs
    one = bootstrap.compare(results, "top1_percent", of_seeds[:1], 0.96)
    again = bootstrap.compare(results, "top1_percent", of_seeds[:1] * 3, 0.96)
    assert (one.low, one.high) == pytest.approx((again.low, again.high))


def test_what_is_kept_is_the_same_bytes_and_belongs_to_its_record(pairs):
    results, ((a, _), *_) = pairs
    file = bootstrap.path(results / "records" / f"{a['address']}.json")
    before = file.read_bytes()
    bootstrap.write(file, bootstrap.read(a, results))
    assert file.read_bytes() == before
    bootstrap.write(file, {"predicted": np.zeros(3)})
    with pytest.raises(UserError, match=r"seed_0\.npz is not what its run has left: delete it and its record"):
        bootstrap.read(a, results)
    file.unlink()
    assert bootstrap.read(a, results) is None
    assert record.checksum(a)
