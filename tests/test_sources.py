"""ImageNet's layouts: the same images from folders, tar shards and tables give the same training."""

import io
import os
import tarfile

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from hypotheses import data
from hypotheses.config import compose
from hypotheses.data import __main__ as front
from hypotheses.data import folder, preflight, sources
from hypotheses.errors import UserError
from hypotheses.run import run

CLASSES = ("n01", "n02")
SMALL = ["scale=paper", "recipe.num_classes=2", "recipe.image_size=32", "recipe.epochs=1", "recipe.batch_size=8",
         "recipe.schedule.warmup_epochs=0", "recipe.precision=32-true", "hardware=cpu", "backbone=mambaout_atto"]  # fmt: skip


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def folders(tmp_path):
    """A small ImageNet of 12 images for training and 6 for validation."""
    root, rng = tmp_path / "folders", np.random.default_rng(0)
    for split, num in (("train", 6), ("val", 3)):
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for i in range(num):
                pixels = np.clip(rng.normal(80 + 90 * label, 30, (*rng.integers(40, 90, 2), 3)), 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{i}.JPEG")
    return root


@pytest.fixture
def shards(folders, tmp_path):
    """The same in tar files of five images, in the order of the folders."""
    root = tmp_path / "shards"
    root.mkdir()
    for split, word in (("train", "train"), ("val", "validation")):
        samples = folder.list_images(folders, split, CLASSES)
        for shard in range(0, len(samples), 5):
            with tarfile.open(root / f"imagenet-{word}-{shard // 5:04d}.tar", "w") as tar:
                for number, (path, label) in enumerate(samples[shard : shard + 5], shard):
                    add(tar, f"{number:06d}.cls", str(label).encode())
                    with open(path, "rb") as file:
                        add(tar, f"{number:06d}.jpg", file.read())
                    add(tar, f"{number:06d}.json", b"{}")
    return root


def rows(folders, split):
    samples = folder.list_images(folders, split, CLASSES)
    return datasets.Dataset.from_dict(
        {"image": [path for path, _ in samples], "label": [label for _, label in samples]},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}),
    )


@pytest.fixture
def parquet(folders, tmp_path):
    root = tmp_path / "parquet"
    (root / "data").mkdir(parents=True)
    train = rows(folders, "train")
    train.select(range(7)).to_parquet(root / "data" / "train-00000-of-00002.parquet")
    train.select(range(7, 12)).to_parquet(root / "data" / "train-00001-of-00002.parquet")
    rows(folders, "val").to_parquet(root / "data" / "validation-00000-of-00001.parquet")
    return root


@pytest.fixture
def saved(folders, tmp_path):
    root = tmp_path / "saved"
    datasets.DatasetDict({"train": rows(folders, "train"), "validation": rows(folders, "val")}).save_to_disk(root)
    return root


LAYOUTS = ["shards", "parquet", "saved"]


@pytest.fixture
def layouts(folders, shards, parquet, saved):
    return {"folders": folders, "shards": shards, "parquet": parquet, "saved": saved}


def test_every_layout_holds_the_same_images(layouts, tmp_path):
    for split in ("train", "val"):
        wanted = sources.load(layouts["folders"], split, CLASSES, tmp_path / "index")
        for name in LAYOUTS:
            found = sources.load(layouts[name], split, CLASSES, tmp_path / "index")
            assert found.labels.tolist() == wanted.labels.tolist(), name
            assert [found.read(i) for i in range(len(found.labels))] == [
                wanted.read(i) for i in range(len(wanted.labels))
            ]
            assert str(layouts[name]) in found.name(3)


@pytest.mark.slow
def test_the_layout_changes_no_bit_of_a_training(layouts, paths, tmp_path):
    """With workers, which open the shards and tables for themselves."""
    weights, prints = [], set()
    for name, root in layouts.items():
        config = compose([*paths, *SMALL, "hardware.workers=2", f"paths.imagenet={root}", f"tag={name}"])
        result = run(config)
        assert result and result["metrics"]["val_images"] == 6
        prints.add(result["data_fingerprint"])
        weights.append(torch.load(tmp_path / "outputs" / result["address"] / "weights.pt"))
    assert len(prints) == 4
    for other in weights[1:]:
        assert all(torch.equal(other[key], value) for key, value in weights[0].items())


def test_a_shard_is_indexed_once(shards, tmp_path, monkeypatch):
    first = sources.load(shards, "train", CLASSES, tmp_path / "index")
    monkeypatch.setattr(sources.tarfile, "open", lambda *_, **__: pytest.fail("it was opened again"))
    again = sources.load(shards, "train", CLASSES, tmp_path / "index")
    assert np.array_equal(first.places, again.places) and again.read(7) == first.read(7)  # type: ignore[attr-defined]


def test_changed_files_change_the_fingerprint(shards, tmp_path):
    def fingerprint():
        return sources.check(shards, 2, None, ("train", "val"), tmp_path / "index")[1]

    before = fingerprint()
    assert fingerprint() == before
    with tarfile.open(shards / "imagenet-train-0002.tar", "w") as tar:
        add(tar, "a.cls", b"1")
        add(tar, "a.jpg", b"no image, but that is not looked at here")
    assert fingerprint() != before


def test_listed_classes_are_taken_from_numbers_of_all_synsets(tmp_path):
    """As the pilot does: label 0 is the first of ImageNet's synsets."""
    synsets, listed = sources.synsets(), sources.wanted("imagenet_100.txt")
    assert len(synsets) == 1000 and list(synsets) == sorted(synsets) and set(listed) < set(synsets)
    labels = np.array([synsets.index(listed[3]), synsets.index(listed[0]), 999 - (synsets[-1] in listed)])
    kept, relabelled = sources.relabel(labels, listed)
    assert kept.tolist() == [0, 1] and relabelled.tolist() == [3, 0]


def break_shard(root, how):
    file = root / "imagenet-train-0001.tar"
    if how == "cut":
        file.write_bytes(file.read_bytes()[:5000])
    elif how == "no tar":
        file.write_bytes(b"<html>not found</html>" * 100)
    elif how == "no label":
        with tarfile.open(file, "w") as tar:
            add(tar, "a.jpg", b"")
    elif how == "odd label":
        with tarfile.open(file, "w") as tar:
            add(tar, "a.jpg", b"")
            add(tar, "a.cls", b"cat")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("cut", r"train-0001.tar cannot be read as a tar file of images \(.*\): mend or replace it"),
        ("no tar", r"train-0001.tar cannot be read as a tar file of images"),
        ("no label", r"train-0001.tar: 1 samples have not both an image \(.*\) and a .cls file, a first"),
        ("odd label", r"train-0001.tar cannot be read as a tar file of images \(invalid literal"),
    ],
)
def test_a_broken_shard_is_named(shards, tmp_path, how, said):
    break_shard(shards, how)
    with pytest.raises(UserError, match=said):
        sources.load(shards, "train", CLASSES, tmp_path / "index")


def test_a_missing_split_or_class_or_column_is_named(shards, parquet, folders, paths, tmp_path):
    for file in shards.glob("*validation*"):
        file.unlink()
    with pytest.raises(UserError, match=r"shards of another split, but none with val or validation in its name"):
        data.prepare(compose([*paths, *SMALL, f"paths.imagenet={shards}"]))
    with pytest.raises(UserError, match=r"train: 2 of 3 labels have images, but recipe\.num_classes=3"):
        data.prepare(compose([*paths, *SMALL, "recipe.num_classes=3", f"paths.imagenet={parquet}"]))
    rows(folders, "train").rename_column("label", "class").to_parquet(parquet / "data" / "train-00000-of-00002.parquet")
    (parquet / "data" / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(UserError, match="the columns image, class: `image` and `label` are needed"):
        data.prepare(compose([*paths, *SMALL, f"paths.imagenet={parquet}"]))
    (parquet / "data" / "train-00000-of-00002.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(UserError, match=r"the tables cannot be read \("):
        data.prepare(compose([*paths, *SMALL, f"paths.imagenet={parquet}"]))


# ---- their check -----------------------------------------------------------------------------------------------------


def overrides(paths, root):
    return [*paths, *SMALL, f"paths.imagenet={root}"]


@pytest.mark.parametrize("name", ["shards", "parquet", "saved"])
def test_a_good_packed_set_has_nothing_wrong(layouts, paths, name):
    config = compose(overrides(paths, layouts[name]))
    result = preflight.check(config)
    assert {f.kind for f in result.findings} <= {"count"} and result.decoded == 18
    assert preflight.check(config).decoded == 0


def test_a_broken_image_in_a_shard_is_named_and_can_be_left_out(shards, paths, capsys):
    file = shards / "imagenet-train-0001.tar"
    whole = sources.load(shards, "train", CLASSES, shards.parent / "index")
    number, offset, size = whole.places[7]  # type: ignore[attr-defined]
    assert whole.files[number] == file  # type: ignore[attr-defined]
    content = bytearray(file.read_bytes())
    content[offset + 150 : offset + size] = bytes(size - 150)
    file.write_bytes(content)
    words = overrides(paths, shards)
    name = f"imagenet-train-0001.tar:{offset}:{size}"
    with pytest.raises(UserError, match=f"1 error in the data at .*, {name} first: "):
        run(compose(words))
    before = data.prepare(compose(words)).fingerprint
    assert front.main(["quarantine", *words]) == 0
    assert "1 file in quarantine" in capsys.readouterr().out
    config = compose([*words, "hardware.workers=1"])
    assert data.prepare(config).left_out == (name,) and data.prepare(config).fingerprint != before
    result = run(config)
    assert result and result["provenance"]["left_out"] == [name]


def test_a_shard_that_cannot_be_read_is_a_finding_of_the_check(shards, paths, capsys):
    break_shard(shards, "cut")
    for file in shards.glob("*validation*"):
        file.unlink()
    assert front.main(["check", *overrides(paths, shards)]) == 2
    shown = capsys.readouterr().out
    assert (
        "error packed: train: " in shown and "imagenet-train-0001.tar cannot be read as a tar file of images" in shown
    )
    assert "error packed: val: " in shown and "none with val or validation in its name" in shown


def test_a_packed_file_is_looked_at_again_when_it_changes_and_let_go_when_it_is_mended(shards, paths, capsys):
    """Whatever the times of the other files are; a broken image that was left out comes back."""
    file, words = shards / "imagenet-train-0001.tar", overrides(paths, shards)
    old = file.read_bytes()
    os.utime(file, (1e9, 1e9))  # older than all others
    assert not preflight.check(compose(words)).errors
    whole = sources.load(shards, "train", CLASSES, shards.parent / "index")
    _, offset, size = whole.places[7]  # type: ignore[attr-defined]
    file.write_bytes(old[: offset + 150] + bytes(size - 150) + old[offset + size :])
    os.utime(file, (1.1e9, 1.1e9))
    assert len(preflight.check(compose(words)).errors) == 1
    assert front.main(["quarantine", *words]) == 0
    assert len(data.prepare(compose(words)).left_out) == 1
    file.write_bytes(old)
    os.utime(file, (1.2e9, 1.2e9))
    assert "mended" in {f.kind for f in preflight.check(compose(words)).findings}
    assert front.main(["quarantine", *words]) == 0 and data.prepare(compose(words)).left_out == ()
    assert "taken off the list: imagenet-train-0001.tar:" in capsys.readouterr().out


def test_other_labels_in_files_of_the_same_size_are_other_data(shards, tmp_path):
    def fingerprint():
        return sources.check(shards, 2, None, ("train", "val"), tmp_path / "index")[1]

    before, file = fingerprint(), shards / "imagenet-train-0002.tar"
    size = file.stat().st_size
    with tarfile.open(file, "r:") as tar:
        place = next(member.offset_data for member in tar if member.name.endswith(".cls"))
    content = bytearray(file.read_bytes())
    content[place] = ord("0") if content[place] == ord("1") else ord("1")
    file.write_bytes(content)
    assert file.stat().st_size == size and fingerprint() != before


def test_archives_beside_the_folders_are_not_looked_at(folders, tmp_path):
    (folders / "ILSVRC2012_img_train.tar").write_bytes(b"as it was downloaded")
    (folders / "train" / "n01.tar").write_bytes(b"")
    assert sources.layout(folders) == "folders"
    assert len(sources.load(folders, "train", CLASSES, tmp_path).labels) == 12


def test_no_more_files_are_open_than_are_read(shards, tmp_path):
    source = sources.load(shards, "train", CLASSES, tmp_path / "index")
    before = len(os.listdir("/proc/self/fd"))
    for number in range(len(source.labels)):
        source.read(number)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"a.jpg": b"x", "a.cls": b"-1"}, "has images of label -1"),
        ({"a.jpg": b"x", "a.png": b"y", "a.cls": b"0"}, "the sample a is in it twice, or with two images"),
        (
            {"a.jpg": b"x", "a.cls": b"0", "b.bmp": b"y"},
            r"1 samples have not both an image \(.*\) and a .cls file, b first",
        ),
    ],
)
def test_nothing_in_a_shard_is_passed_over(tmp_path, members, said):
    with tarfile.open(tmp_path / "x-train-0.tar", "w") as tar:
        for name, content in members.items():
            add(tar, name, content)
    with pytest.raises(UserError, match=said):
        sources.load(tmp_path, "train", CLASSES, tmp_path / "index")


def test_a_passing_failure_is_not_kept(shards, paths, monkeypatch):
    config = compose(overrides(paths, shards))

    def fail(*_, **__):
        raise UserError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(sources, "load", fail)
        assert "packed" in {f.kind for f in preflight.check(config).findings}
    assert "packed" not in {f.kind for f in preflight.check(config).findings}
