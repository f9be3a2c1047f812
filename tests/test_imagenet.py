"""The classification task: its recipe, its order of images, and real image folders through the same code."""

import math
import os
import random
import time

import numpy as np
import pytest
import torch
from PIL import Image

from hypotheses import data, tasks
from hypotheses.config import compose
from hypotheses.data import preflight, sources
from hypotheses.errors import UserError, one_line
from hypotheses.run import run
from hypotheses.tasks import common, imagenet, images


@pytest.fixture
def build(paths, tmp_path):
    def make(*overrides: str) -> imagenet.Job:
        config = compose([*paths, "scale=smoke", "hardware=cpu", *overrides])
        return imagenet.build(tasks.Run(config, data.prepare(config), tmp_path))

    return make


def test_the_paper_recipe():
    recipe = compose(["scale=paper", "backbone=mambaout_tiny"])["recipe"]
    assert (recipe["epochs"], recipe["batch_size"], recipe["label_smoothing"]) == (300, 4096, 0.1)
    assert recipe["optimizer"] == {"lr": 4e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.05}
    assert recipe["schedule"] == {"warmup_epochs": 20, "warmup_lr": 1e-6, "min_lr": 1e-5}
    assert recipe["mix"] == {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "prob": 1.0, "switch_prob": 0.5}
    assert recipe["augment"]["auto_augment"] == "rand-m9-mstd0.5-inc1" and recipe["augment"]["re_prob"] == 0.25
    assert (recipe["drop_path"], recipe["crop_pct"]) == (0.2, 1.0)


def test_digits_are_enlarged_to_the_size_of_the_recipe(paths, tmp_path):
    def made(*overrides):
        config = compose([*paths, "hardware=cpu", *overrides])
        run = tasks.Run(config, data.prepare(config), tmp_path)
        return images.dataset(run, "val").images.float()  # type: ignore[attr-defined]

    drawn, larger = made(), made("dose=d24_p4_64px")
    assert drawn.shape[2:] == (32, 32) and larger.shape[2:] == (64, 64)
    again = torch.nn.functional.avg_pool2d(larger, 2)  # enlarging and shrinking changes little of what is to be seen
    assert (again - drawn).abs().mean() < 0.35 * drawn.std()


def test_the_schedule_warms_up_linearly_and_falls_as_half_a_cosine(build):
    module = build("recipe.epochs=10", "recipe.schedule.warmup_epochs=2").module
    made = module.configure_optimizers()
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(20):  # two steps an epoch
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    peak, low, start = 4e-3, 1e-5, 1e-6
    assert rates[:5] == pytest.approx([start + (peak - start) * i / 4 for i in range(5)])
    assert rates[12] == pytest.approx(low + (peak - low) / 2)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(low)
    assert {g["weight_decay"] for g in optimizer.param_groups} == {0.05, 0.0}


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_global_batches_do_not_depend_on_the_number_of_processes(world, monkeypatch):
    def epoch(rank, size, number):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(size))
        sampler = common.EpochSampler(37, 8, seed=3)
        sampler.set_epoch(number)
        keys = list(sampler)
        assert len(keys) == len(sampler) and {e for e, _ in keys} == {number}
        return [i for _, i in keys]

    def batches(size, number):
        shares = [epoch(rank, size, number) for rank in range(size)]
        return [{i for share in shares for i in share[b * 8 // size : (b + 1) * 8 // size]} for b in range(4)]

    assert batches(world, 1) == batches(1, 1)
    assert sum(map(len, batches(world, 1))) == 32  # all different; the last five images do not fill a batch
    assert batches(1, 1) != batches(1, 2)


def test_validation_visits_every_image_once(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    seen = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        seen += [i for _, i in common.EpochSampler(10, None, seed=0)]
    assert sorted(seen) == list(range(10))


def test_the_batch_is_shared_and_split_into_passes():
    assert common.divide(4096, 8, 512) == common.Share(512, 1)
    assert common.divide(4096, 8, 128) == common.Share(128, 4)
    assert common.divide(96, 1, 40) == common.Share(32, 3)
    with pytest.raises(UserError, match="cannot be shared by 3 processes"):
        common.divide(64, 3, 64)


def test_keyed_random_is_a_function_of_its_key_and_leaves_no_trace():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    def keyed(*key):
        with common.keyed_random(*key):
            return draw()

    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    first = draw()
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    one = keyed(1, 2, 3)
    assert draw() == first
    assert keyed(1, 2, 3) == one != keyed(1, 2, 4)


def test_accumulated_passes_equal_one_pass_over_the_batch(build):
    """With mixing and drop path off, the weights after an epoch do not depend on how a batch is split."""
    weights = []
    for most in (8, 2):
        job = build("recipe.mix=null", f"hardware.max_batch_per_device={most}", "recipe.epochs=2")
        imagenet.train(job)
        assert job.trainer.global_step == 4
        weights.append(torch.cat([p.detach().flatten() for p in job.module.model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=2e-4)


def test_a_loss_that_is_no_number_ends_the_run(build):
    job = build("recipe.optimizer.lr=1e30", "recipe.epochs=3", "recipe.schedule.warmup_epochs=0")
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        imagenet.train(job)
    assert not (job.run.folder / "weights.pt").exists()


@pytest.fixture
def real_images(tmp_path):
    """An ImageNet in small: JPEGs of odd sizes and modes in class folders."""
    rng = np.random.default_rng(0)
    for split, num in (("train", 8), ("val", 3)):
        for c, name in enumerate(("n01", "n02")):
            (tmp_path / "imagenet" / split / name).mkdir(parents=True)
            for i in range(num):
                size = rng.integers(40, 90, 2)
                pixels = np.clip(rng.normal(80 + 90 * c, 30, (*size, 3)), 0, 255).astype(np.uint8)
                image = Image.fromarray(pixels)
                image = image.convert("L") if i == 1 else image.convert("CMYK") if i == 2 else image
                image.save(tmp_path / "imagenet" / split / name / f"{i}.JPEG")
    return tmp_path / "imagenet"


PAPER = ["scale=paper", "recipe.num_classes=5", "recipe.image_size=32", "recipe.epochs=2", "recipe.batch_size=8",
         "recipe.schedule.warmup_epochs=1", "recipe.precision=32-true", "hardware=cpu"]  # fmt: skip


def test_an_image_folder_is_trained_with_the_papers_recipe(real_images, paths):
    """RandAugment, mixup, cutmix, erasing and workers, on real files; whatever loads them, the result is the same."""
    small = [
        *PAPER[:1],
        "recipe.num_classes=2",
        *PAPER[2:],
        "backbone=mambaout_atto_ssm",
        f"paths.imagenet={real_images}",
    ]
    results = []
    for workers, tag in ((0, "none"), (2, "two")):
        config = compose([*paths, *small, f"hardware.workers={workers}", f"tag={tag}"])
        results.append(run(config))
    assert results[0]["metrics"] == results[1]["metrics"] and results[0]["curve"] == results[1]["curve"]
    assert results[0]["metrics"]["val_images"] == 6
    assert math.isfinite(results[0]["metrics"]["val_loss"])


def test_augmentation_is_a_function_of_seed_epoch_and_image(real_images, paths, tmp_path):
    config = compose([*paths, *PAPER, "recipe.num_classes=2", f"paths.imagenet={real_images}"])
    made = tasks.Run(config, data.prepare(config), tmp_path)
    one, two = images.dataset(made, "train"), images.dataset(made, "train")
    assert torch.equal(one[0, 3][0], two[0, 3][0])
    assert not torch.equal(one[0, 3][0], one[1, 3][0])
    val = images.dataset(made, "val")
    assert torch.equal(val[0, 3][0], val[1, 3][0])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named(real_images, paths, workers, capsys):
    config = compose(
        [*paths, *PAPER, "recipe.num_classes=2", f"paths.imagenet={real_images}", f"hardware.workers={workers}"]
    )
    assert not preflight.check(config).errors
    broken = real_images / "train" / "n01" / "3.JPEG"
    size, stat = broken.stat().st_size, broken.stat()
    broken.write_bytes(broken.read_bytes()[:200].ljust(size, b"\0"))  # unseen by the check, which goes by size and time
    os.utime(broken, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(SystemExit) as end, one_line():
        run(config)
    said = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 2 and said.startswith("error: /") and "n01/3.JPEG cannot be read as an image" in said


def test_a_record_says_how_long_training_waited_for_data(real_images, paths, monkeypatch):
    read = sources.Folders.read

    def slowly(self, index):
        time.sleep(0.02)
        return read(self, index)

    monkeypatch.setattr(sources.Folders, "read", slowly)
    config = compose([*paths, *PAPER, "recipe.num_classes=2", f"paths.imagenet={real_images}", "hardware.workers=0"])
    result = run(config)
    assert result
    waited = result["provenance"]["waited_for_data"]
    images_read = 2 * 16  # two epochs
    assert images_read * 0.02 <= waited["seconds"] <= waited["of"] <= result["seconds"]
