"""Loading ImageNet for training: our pipeline against timm's transform in a plain DataLoader, the same augmentation in both.

    python benchmarks/loading.py [--folder IMAGENET]

Both read the same JPEG files with the same number of worker processes: RandomResizedCrop, flip, RandAugment and random erasing as
the paper's recipe has them, to normalised float batches in the main process. Interleaved, a pass over the images each; a round's
first batch, for which the workers wake up, is not counted. Prints images per second and the median of the per-round ratios with its range.

Without --folder the files are crops of scikit-learn's two photographs, of ImageNet's usual size.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from side_by_side import machine, ratios
from sklearn.datasets import load_sample_images
from timm.data import create_transform
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from hypotheses import allocator, data, tasks
from hypotheses.config import compose
from hypotheses.tasks import imagenet, images

SIZES = ((375, 500), (500, 375))  # height and width in pixels


def write_photographs(root: Path, num: int) -> None:
    """An image folder of two classes for training and for validation."""
    photographs = [Image.fromarray(photo) for photo in load_sample_images().images]
    rng = np.random.default_rng(0)
    for split, count in (("train", num), ("val", 2)):
        for number in range(count):
            folder = root / split / f"n{number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            whole, (height, width) = photographs[number % 2], SIZES[number // 2 % 2]
            scale = rng.uniform(1.2, 1.6)
            whole = whole.resize((round(scale * whole.width), round(scale * whole.height)), Image.Resampling.BICUBIC)
            left, top = rng.integers(whole.width - width + 1), rng.integers(whole.height - height + 1)
            whole.crop((left, top, left + width, top + height)).save(folder / f"{number}.JPEG", quality=95)


def seconds(batches: Iterable[Any], finish: Any) -> tuple[float, int]:
    """Of a pass without its first batch, and its images."""
    start, seen = 0.0, 0
    for number, batch in enumerate(batches):
        finish(batch)
        if number == 0:
            start = time.perf_counter()
        else:
            seen += len(batch[0])
    return time.perf_counter() - start, seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="of ImageNet, with train/ and val/")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    allocator.keep_memory()  # for both, and for their workers
    with tempfile.TemporaryDirectory() as place:
        root = Path(asked.folder or place)
        if not asked.folder:
            write_photographs(root, asked.images)
        classes = sum(1 for _ in (root / "train").iterdir())
        config = compose(["scale=paper", "hardware=cpu", f"hardware.workers={asked.workers}", f"paths.imagenet={root}",
                          f"paths.data={place}", f"recipe.num_classes={classes}", "recipe.precision=32-true"])  # fmt: skip
        recipe = config["recipe"]
        run = tasks.Run(config, data.prepare(config), Path(place))
        batch = 64
        recipe["batch_size"] = batch
        module = imagenet.Classification(config, 1)
        transform: Any = create_transform(
            recipe["image_size"], is_training=True, mean=recipe["mean"], std=recipe["std"], **recipe["augment"]
        )
        theirs = DataLoader(
            ImageFolder(root / "train", transform), batch, shuffle=True, drop_last=True, num_workers=asked.workers,
            persistent_workers=asked.workers > 0,
        )  # fmt: skip

        def on_the_batch(batch: Any) -> None:
            inputs = module.normalise(batch[0])
            images.erase(inputs, module.eraser, [(0, 0, index) for index in batch[2].tolist()])

        loaders = {
            "timm": (theirs, lambda batch: batch[0]),
            "ours": (images.loader(run, "train", batch), on_the_batch),
        }
        rates: dict[str, list[float]] = {name: [] for name in loaders}
        for number in range(asked.rounds + 1):
            for name, (loader, finish) in loaders.items():
                passed, seen = seconds(loader, finish)
                if number:  # the first round warms up
                    rates[name].append(passed / seen)
        files = [p for p in (root / "train").rglob("*") if p.is_file()][:1000]
        size = statistics.mean(p.stat().st_size for p in files) / 1024
        for name, found in rates.items():
            print(
                f"{name}: {1 / statistics.median(found):.0f} images/s (median of {len(found)} rounds of {seen} images)"
            )
        print(f"ours x timm: {ratios(rates['timm'], rates['ours'])}; {asked.workers} workers, files of {size:.0f} KB")
    print(machine("torchvision", "timm", "pillow"))


if __name__ == "__main__":
    main()
