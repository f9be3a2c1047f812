"""From a file to a batch: timm's augmentation, in another order of work."""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from timm.data import create_transform

from hypotheses.config import compose
from hypotheses.errors import UserError
from hypotheses.tasks import imagenet, images
from hypotheses.tasks.common import keyed_random


def jpeg(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=95)
    return content.getvalue()


@pytest.fixture(scope="module")
def photograph():
    return jpeg(Image.fromarray(load_sample_image("china.jpg")))


@pytest.fixture(scope="module")
def recipe():
    return compose(["scale=paper"])["recipe"]


def timms(recipe, **changes):
    """timm's whole transform for training."""
    asked = recipe["augment"] | changes
    return create_transform(recipe["image_size"], is_training=True, mean=recipe["mean"], std=recipe["std"], **asked)


def as_float(image, recipe):
    module_mean, module_std = (torch.tensor(recipe[key]).view(3, 1, 1) for key in ("mean", "std"))
    return (image / 255 - module_mean) / module_std


def test_the_augmentation_is_timms_draw_for_draw(photograph, recipe):
    """The same crops, flips, operations and magnitudes from the same random state; pixels differ by the rounding of a resize, which
    solarising or equalising can magnify in a few of them, and by OpenCV's kernel for what is turned or sheared."""
    ours, theirs = images.augmentation(recipe), timms(recipe, re_prob=0.0)
    differences = []
    for number in range(40):
        with keyed_random(number):
            image = ours(photograph, "photograph")
            drawn = random.random(), np.random.rand(), torch.rand(1).item()
        with keyed_random(number):
            wanted = theirs(Image.open(io.BytesIO(photograph)))
            assert (random.random(), np.random.rand(), torch.rand(1).item()) == drawn
        differences.append((as_float(image, recipe) - wanted).abs().mean().item())
    assert np.median(differences) < 0.01 and max(differences) < 0.1  # of a deviation; two other draws are 1.1 apart


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "rand-m7-n3"])
def test_each_operation_of_the_policy_makes_timms_pixels(recipe, policy):
    """The same, value for value, but where OpenCV turns, shears and shifts."""
    recipe = recipe | {"augment": recipe["augment"] | {"auto_augment": policy}}
    (theirs,), (ours,) = images.parts(recipe)[1], [images.on_arrays(step) for step in images.parts(recipe)[1]]
    photo = np.asarray(Image.fromarray(load_sample_image("flower.jpg")).resize((224, 200)))
    changed = set()
    for number in range(10):
        for wanted, operation in zip(theirs.ops, ours.ops, strict=True):
            with keyed_random(number):
                made = operation(photo)
                drawn = random.random()
            with keyed_random(number):
                pixels = np.asarray(wanted(Image.fromarray(photo)))
                assert random.random() == drawn
            if operation.name in images.WARPS:
                assert np.abs(made.astype(float) - pixels).mean() < 4
            else:
                assert np.array_equal(made, pixels), operation.name
            if not np.array_equal(made, photo):
                changed.add(operation.name)
    assert len(changed) == len(ours.ops) == 15


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_batch_is_normalised_image_by_image(channels_last):
    words = ["scale=paper", "backbone=mambaout_atto", f"recipe.channels_last={channels_last}"]
    module = imagenet.Classification(compose(words), 1)
    batch = torch.randint(0, 256, (11, 3, 160, 160), dtype=torch.uint8)
    made = module.normalise(batch)
    assert torch.allclose(made, (batch / 255 - module.mean) / module.std, atol=1e-6)
    assert torch.equal(made[7:], module.normalise(batch[7:]))
    assert made.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    assert torch.equal(module.normalise(batch.contiguous(memory_format=torch.channels_last)), made)


def test_erasing_is_timms_on_a_batch(recipe):
    eraser = images.erasing(recipe)
    assert (eraser.probability, eraser.per_pixel) == (0.25, True)
    module = imagenet.Classification(compose(["scale=paper", "backbone=mambaout_atto", "recipe.mix=null"]), 1)
    seen = []
    module.model = torch.nn.Sequential(Keep(seen), module.model)
    plain = torch.full((64, 3, 224, 224), 128, dtype=torch.uint8)
    for _ in range(2):
        module.training_step((plain, torch.zeros(64, dtype=torch.long), torch.arange(64)), 0)
    changed = (seen[0] != module.normalise(plain)[:1]).any(dim=1).flatten(1).float().mean(dim=1)
    assert 6 <= (changed > 0).sum() <= 28 and changed[changed > 0].min() >= 0.02 and changed.max() <= 1 / 3
    assert torch.equal(seen[0], seen[1])
    module.training_step((plain[:16], torch.zeros(16, dtype=torch.long), torch.arange(48, 64)), 5)
    assert torch.equal(seen[2], seen[0][48:])  # of seed, epoch and image, not of the batch or the pass that it is in


class Keep(torch.nn.Module):
    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def forward(self, batch):
        self.seen.append(batch.detach().clone())
        return batch[:, :, :32, :32]


def test_normalised_as_timm_does(photograph, recipe):
    transform = create_transform(224, interpolation="bicubic", crop_pct=1.0, mean=recipe["mean"], std=recipe["std"])
    wanted = transform(Image.open(io.BytesIO(photograph)))
    image = images.evaluation(recipe)(photograph, "photograph")
    assert image.shape == (3, 224, 224) and image.dtype == torch.uint8
    module = imagenet.Classification(compose(["scale=paper", "backbone=mambaout_atto"]), 1)
    assert torch.allclose(module.normalise(image[None])[0], wanted, atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "1", "I;16"])
def test_every_mode_becomes_rgb(mode, recipe):
    image = Image.fromarray((np.random.default_rng(0).random((50, 60)) * 255).astype(np.uint8))
    image = Image.fromarray(np.asarray(image).astype(np.uint16) * 256) if mode == "I;16" else image.convert(mode)
    content = io.BytesIO()
    image.save(content, "JPEG" if mode == "CMYK" else "PNG")
    assert images.augmentation(recipe)(content.getvalue(), "x").shape == (3, 224, 224)


@pytest.mark.parametrize("cut", [0, 10, 2000])
def test_what_cannot_be_read_is_named(photograph, recipe, cut):
    for transform in (images.augmentation(recipe), images.evaluation(recipe)):
        with pytest.raises(UserError, match=r"some/file.JPEG cannot be read as an image \(.*\): mend or replace"):
            transform(photograph[:cut], "some/file.JPEG")
