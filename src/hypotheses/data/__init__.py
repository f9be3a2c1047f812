"""Where a run's images come from: the demo's embedded digits and scenes of them, real data sets in their published layouts, or
made-up images for the tests.

Nothing here imports torch, so that asking whether a run is already recorded stays quick.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from hypotheses.config import Config
from hypotheses.data import folder, quarantine, sources

PUBLISHED = ("imagenet", "coco", "ade20k")  # sources of data; others are drawn from the seed


@dataclasses.dataclass(frozen=True)
class Images:
    """A data set as a run sees it.

    root         its folder, in the layout of the task's data set; None for made-up images
    classes      class names in the order of the labels
    fingerprint  changes when the data do; part of the run's identity. An evaluation looks at val/ alone
    left_out     files in quarantine, relative to the folder, sorted
    """

    root: Path | None
    classes: tuple[str, ...]
    fingerprint: str
    left_out: tuple[str, ...] = ()


def depends_on(config: Config) -> str:
    """What decides which data a run sees: two configs with the same answer share them."""
    data = config["recipe"]["data"]
    seed = None if data["source"] in PUBLISHED else config["seed"]
    return json.dumps([data, config["recipe"]["num_classes"], config["paths"], seed], sort_keys=True)


def index_folder(config: Config) -> Path:
    """For what is worked out of a data set once."""
    return Path(config["paths"]["data"], "index")


def prepare(config: Config) -> Images:
    """Find the data of a run, or make them where the project can. Raises UserError with the layout that is expected."""
    data: dict[str, Any] = config["recipe"]["data"]
    num_classes: int = config["recipe"]["num_classes"]
    source = data["source"]
    if source == "digits":
        from hypotheses.data import digits

        placements = (data["train_placements"], data["val_placements"])
        version = digits.version(*placements)  # other settings or another generator: another folder
        root = Path(config["paths"]["data"], "demo", f"digits_{version}", f"seed_{config['seed']}")
        fingerprint = digits.prepare(root, config["seed"], *placements)
        return Images(root, tuple(str(label) for label in range(10)), fingerprint)
    if source == "imagenet":
        root = Path(config["paths"]["imagenet"])
        splits = ("val",) if config["mode"]["name"] == "eval" else folder.SPLITS
        left_out = tuple(sorted(quarantine.read(config)))
        classes, fingerprint = sources.check(root, num_classes, data["classes"], splits, index_folder(config), left_out)
        return Images(root, classes, without(fingerprint, left_out), left_out)
    if source == "scenes":
        from hypotheses.data import scenes

        counts = (data["train_images"], data["val_images"])
        root = Path(config["paths"]["data"], "demo", f"scenes_{scenes.version(*counts)}", f"seed_{config['seed']}")
        fingerprint = scenes.prepare(root, config["seed"], *counts)
        task = config["task"]["name"]
        return Images(root / task, scenes.CLASSES if task == "coco" else scenes.SEGMENTS, fingerprint)
    if source == "strips":
        from hypotheses.data import strips

        settings = [data[key] for key in ("train_images", "val_images", "cell", "cells", "marked")]
        root = Path(config["paths"]["data"], "demo", f"strips_{strips.version(*settings)}", f"seed_{config['seed']}")
        fingerprint = strips.prepare(root, config["seed"], *settings)
        return Images(root, tuple(str(label) for label in range(10)), fingerprint)
    if source in ("coco", "ade20k"):
        from hypotheses.data import layouts

        root = Path(config["paths"][source])
        left_out = tuple(sorted(quarantine.read(config)))
        fingerprint = layouts.check(source, root, config["mode"]["name"] == "train", left_out)
        return Images(root, (), without(fingerprint, left_out), left_out)
    assert source == "random", source
    digest = hashlib.sha256(json.dumps([data, config["seed"]], sort_keys=True).encode())
    return Images(None, tuple(str(label) for label in range(num_classes)), digest.hexdigest())


def without(fingerprint: str, left_out: tuple[str, ...]) -> str:
    """The fingerprint of what is left of a set."""
    return hashlib.sha256(json.dumps([fingerprint, left_out]).encode()).hexdigest() if left_out else fingerprint
