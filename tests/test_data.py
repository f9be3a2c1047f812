"""The demo's digits are deterministic, whole and shared; an image folder that is not right is refused by name."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hypotheses import data
from hypotheses.config import ROOT, compose
from hypotheses.data import digits, folder
from hypotheses.errors import UserError

FEW = (1, 1)  # placements


def few_digits(root: Path, seed: int = 0) -> str:
    return digits.prepare(root, seed, *FEW)


def test_the_set_is_a_function_of_its_seed(tmp_path):
    first, again, other = few_digits(tmp_path / "a"), few_digits(tmp_path / "b"), few_digits(tmp_path / "c", seed=1)
    assert first == again != other
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.png"))
    assert len(files) == 1797
    for file in files[::100]:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_fingerprint_of_this_version_is_known():
    """A change of the digits must be meant: it makes every demo record another run's."""
    import hashlib

    digest = hashlib.sha256()
    for path, pixels in digits.images(0, *FEW):
        digest.update(f"{path.as_posix()}\0".encode() + pixels.tobytes())
    assert digest.hexdigest()[:16] == "07ae9619d6c5df1b"


def test_a_digit_is_in_one_split_only_and_classes_are_balanced(tmp_path):
    few_digits(tmp_path / "a")
    splits = {s: {p.stem.split("_")[0] for p in (tmp_path / "a" / s).rglob("*.png")} for s in folder.SPLITS}
    assert not splits["train"] & splits["val"]
    assert len(splits["train"] | splits["val"]) == 1797
    per_class = [len(list((tmp_path / "a" / "val" / str(c)).iterdir())) for c in range(10)]
    assert min(per_class) >= 58 and max(per_class) <= 61


def test_images_are_canvases_with_a_digit_somewhere(tmp_path):
    few_digits(tmp_path / "a")
    images = np.stack([np.asarray(Image.open(p)) for p in sorted((tmp_path / "a" / "val" / "0").iterdir())])
    assert images.shape[1:] == (32, 32) and images.dtype == np.uint8
    assert images.max(axis=(1, 2)).min() > 100  # every canvas has a stroke
    bright = [np.argwhere(i > 128).mean(axis=0) for i in images]
    assert np.std(bright, axis=0).min() > 0.5  # which is not always in the same place


@pytest.mark.parametrize(
    "damage", ["remove an image", "empty an image", "add an image", "remove the manifest", "break the manifest"]
)
def test_a_folder_that_is_not_whole_is_made_again(tmp_path, damage, capsys):
    root = tmp_path / "a"
    fingerprint = few_digits(root)
    image = next((root / "train").rglob("*.png"))
    whole = image.read_bytes()
    match damage:
        case "remove an image":
            image.unlink()
        case "empty an image":
            image.write_bytes(b"")
        case "add an image":
            shutil.copy(image, image.with_name("x.png"))
        case "remove the manifest":
            (root / "manifest.json").unlink()
        case "break the manifest":
            (root / "manifest.json").write_text("{")
    assert few_digits(root) == fingerprint
    assert "making it again" in capsys.readouterr().err
    assert image.read_bytes() == whole and not image.with_name("x.png").exists()
    assert few_digits(root) == fingerprint and capsys.readouterr().err == ""


def test_other_settings_make_another_set(tmp_path):
    assert digits.prepare(tmp_path / "a", 0, 1, 1) != digits.prepare(tmp_path / "a", 0, 2, 1)
    assert digits.version(1, 1) != digits.version(2, 1)


@pytest.mark.slow
def test_two_processes_can_ask_at_once_and_one_can_be_killed(tmp_path):
    code = f"from hypotheses.data import digits; from pathlib import Path; print(digits.prepare(Path({str(tmp_path / 'a')!r}), 0, 1, 1))"

    def start() -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)

    killed = start()
    while not list(tmp_path.rglob("*.png")):
        assert killed.poll() is None
    killed.kill()
    killed.wait()
    assert not (tmp_path / "a").exists()
    both = [start(), start()]
    prints = {p.communicate(timeout=120)[0] for p in both}
    assert prints == {few_digits(tmp_path / "b") + "\n"}
    assert not list(tmp_path.glob(".*.partial"))


def test_the_arms_of_a_seed_share_their_data(paths):
    few = [*paths, "recipe.data.train_placements=1", "recipe.data.val_placements=1"]
    arms = [data.prepare(compose([f"backbone=mambaout_atto{s}", *few])) for s in ("", "_ssm")]
    assert arms[0] == arms[1]
    assert arms[0].classes == tuple("0123456789")
    assert data.prepare(compose(["seed=1", *few])).fingerprint != arms[0].fingerprint


# ---- image folders ---------------------------------------------------------------------------------------------------


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    for split, num in (("train", 3), ("val", 2)):
        for name in ("n01", "n02"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(num):
                Image.new("RGB", (40, 30), (50 * i, 0, 0)).save(tmp_path / split / name / f"{name}_{i}.JPEG")
    return tmp_path


def test_an_image_folder_is_read_in_order(image_folder):
    classes, fingerprint = folder.check(image_folder, 2, None)
    assert classes == ("n01", "n02")
    samples = folder.list_images(image_folder, "val", classes)
    assert [(Path(p).name, label) for p, label in samples] == [
        ("n01_0.JPEG", 0),
        ("n01_1.JPEG", 0),
        ("n02_0.JPEG", 1),
        ("n02_1.JPEG", 1),
    ]
    (image_folder / "val" / "n01" / "n01_1.JPEG").write_bytes(b"another size")
    assert folder.check(image_folder, 2, None)[1] != fingerprint


def test_what_is_wrong_with_an_image_folder_is_named(image_folder):
    with pytest.raises(UserError, match=r"num_classes=3"):
        folder.check(image_folder, 3, None)
    with pytest.raises(UserError, match=r"lacks 100 of the 100 classes of imagenet_100\.txt"):
        folder.check(image_folder, 100, "imagenet_100.txt")
    for image in (image_folder / "val" / "n02").iterdir():
        image.unlink()
    with pytest.raises(UserError, match=r"val/n02 has no image"):
        folder.check(image_folder, 2, None)
    (image_folder / "val" / "n02").rmdir()
    with pytest.raises(UserError, match=r"1 classes are in only one of train/ and val/, n02"):
        folder.check(image_folder, 2, None)
    shutil.rmtree(image_folder / "val")
    with pytest.raises(
        UserError, match=r"no images at .*val: expected .*paths.imagenet=FOLDER.*, or use the demo scale"
    ):
        folder.check(image_folder, 2, None)


def test_the_pilots_classes_are_listed():
    names = (Path(folder.__file__).parent / "imagenet_100.txt").read_text().split()
    assert len(set(names)) == 100 and names == sorted(names)
    assert all(len(n) == 9 and n.startswith("n") and n[1:].isdigit() for n in names)
