"""What `make plan` estimates for a GPU, against what the GPU of this machine does: time of a training step, and memory.

    python benchmarks/estimate.py                                                the control and the SSM in each task, at paper scale
    python benchmarks/estimate.py scale=paper,task=coco,backbone=mambaout_small  the runs of your choice, each a word
    python benchmarks/estimate.py --csv results/reference/measured/gpu_steps.csv what `make plan` says it was off by

Each run is a process that trains `--steps` steps as in a sweep, with its recipe and its loading, on crops of scikit-learn's two photographs in the
layout and of the usual size of the published set. ImageNet's batch is what one GPU takes at a time.
"""

import argparse
import contextlib
import csv
import io
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from side_by_side import machine
from sklearn.datasets import load_sample_images

from hypotheses import allocator, data, estimate, tasks
from hypotheses.config import ROOT, compose
from hypotheses.data import layouts
from hypotheses.progress import Enough
from hypotheses.run import peak_memory

TASKS = ("imagenet", "coco", "ade20k")
RUNS = [f"scale=paper,task={task},backbone=mambaout_tiny{arm}" for task in TASKS for arm in ("", "_ssm")]


def jpegs(width: int, height: int, number: int = 8) -> list[bytes]:
    rng, found = np.random.default_rng(0), []
    photographs = [Image.fromarray(photo).resize((1024, 683)) for photo in load_sample_images().images]
    for i in range(number):
        left, top = rng.integers(1024 - width), rng.integers(683 - height)
        file = io.BytesIO()
        photographs[i % 2].crop((left, top, left + width, top + height)).save(file, "JPEG", quality=92)
        found.append(file.getvalue())
    return found


def write_imagenet(root: Path, images: int) -> None:
    """Of 1000 classes."""
    content = jpegs(500, 375)
    for split, count in (("train", max(images, 1000)), ("val", 1000)):
        for number in range(count):
            folder = root / split / f"n{number % 1000:08d}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number}.JPEG").write_bytes(content[number % len(content)])


def write_coco(root: Path, images: int) -> None:
    """With seven objects an image, as COCO has them."""
    names = (Path(layouts.__file__).parent / "coco_classes.txt").read_text().splitlines()
    categories = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
    content, rng = jpegs(640, 480), np.random.default_rng(1)
    (root / "annotations").mkdir(parents=True)
    for split, count in (("train2017", images), ("val2017", 2)):
        (root / split).mkdir()
        every: list[dict[str, Any]] = []
        for number in range(1, count + 1):
            (root / split / f"{number}.jpg").write_bytes(content[number % len(content)])
            for _ in range(7):
                w, h = (int(side) for side in rng.integers(20, 240, 2))
                x, y = int(rng.integers(640 - w)), int(rng.integers(480 - h))
                box = {"bbox": [x, y, w, h], "area": w * h, "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}
                who = {"id": len(every) + 1, "image_id": number, "category_id": int(rng.integers(80)) + 1, "iscrowd": 0}
                every.append(who | box)
        listed = [{"id": n, "file_name": f"{n}.jpg", "width": 640, "height": 480} for n in range(1, count + 1)]
        file = root / "annotations" / f"instances_{split}.json"
        file.write_text(json.dumps({"images": listed, "annotations": every, "categories": categories}))


def write_ade20k(root: Path, images: int) -> None:
    content, rng = jpegs(640, 480), np.random.default_rng(2)
    for split, count in (("training", images), ("validation", 2)):
        for part in ("images", "annotations"):
            (root / part / split).mkdir(parents=True)
        for number in range(count):
            (root / "images" / split / f"{number}.jpg").write_bytes(content[number % len(content)])
            patches = rng.integers(1, 151, (6, 8), dtype=np.uint8)
            Image.fromarray(np.kron(patches, np.ones((80, 80), np.uint8))).save(
                root / "annotations" / split / f"{number}.png"
            )


WRITE = {"imagenet": write_imagenet, "coco": write_coco, "ade20k": write_ade20k}


def one(words: list[str], steps: int) -> dict[str, Any]:
    """The estimates, and what was measured in this process."""
    with tempfile.TemporaryDirectory() as place:
        start = ["pretrained=none"] if {"task=coco", "task=ade20k"} & set(words) else []
        config = compose(["hardware=auto", "wandb=off", *start, *words, f"paths.outputs={place}/outputs"])
        task, recipe = config["task"]["name"], config["recipe"]
        config["paths"][task] = f"{place}/set"
        if task == "imagenet":
            recipe["batch_size"] = min(recipe["batch_size"], config["hardware"]["max_batch_per_device"])
        WRITE[task](Path(place, "set"), steps * recipe["batch_size"])
        expected = estimate.of_run(config)
        allocator.keep_memory()
        module = tasks.load(task)
        with contextlib.redirect_stderr(io.StringIO()):
            job = module.build(tasks.Run(config, data.prepare(config), Path(place), only_steps=steps))
            ends: list[float] = []
            try:
                module.train(job)
            except Enough as enough:
                ends = enough.ends
        # the first two are slower: kernels are compiled, workers begin
        each = [after - before for before, after in itertools.pairwise(ends[1:])]
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        known = next((name for name in estimate.GPUS if name in device), "A100")
        return {
            "run": ",".join(words),
            "device": device,
            "images": expected.images,
            "steps": steps,
            "seconds": round(statistics.median(each), 3),
            "seconds_least": round(min(each), 3),
            "seconds_most": round(max(each), 3),
            "estimated_seconds": round(expected.step[known], 3),
            "memory_gib": round(peak_memory(config) / estimate.GIB, 1),
            "estimated_memory_gib": round(expected.memory / estimate.GIB, 1),
            "torch": torch.__version__.split("+")[0],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", default=RUNS, help="config words, with commas between them")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--csv", help="a file to write, too")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(one(asked.runs, asked.steps)))
        return
    rows = []
    for run in asked.runs:
        command = [sys.executable, __file__, "--one", "--steps", str(asked.steps), *run.split(",")]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        if done.returncode:
            print(f"{run}: failed\n{done.stderr[-2000:]}")
            continue
        row = json.loads(done.stdout.splitlines()[-1])
        rows.append(row)
        times, memory = row["seconds"] / row["estimated_seconds"], row["memory_gib"] / row["estimated_memory_gib"]
        print(
            f"{run}, {row['images']} images: {row['seconds']:.3f} s a step ({row['seconds_least']:.3f} to {row['seconds_most']:.3f}), "
            f"{times:.2f} x estimated; {row['memory_gib']:.1f} GiB, {memory:.2f} x estimated",
            flush=True,
        )
    if asked.csv and rows:
        with open(asked.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    print(machine("lightning", "onedl-mmdetection", "onedl-mmsegmentation"))
    if not torch.cuda.is_available():
        print("no GPU: estimated for an A100, measured on a CPU")


if __name__ == "__main__":
    main()
