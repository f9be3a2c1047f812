"""Detection and segmentation through mmengine's runner: as careful as classification, on every kind of backbone."""

import dataclasses
import itertools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import trained
from hypotheses import bootstrap, data, metrics, pretrained, record, tasks
from hypotheses.config import compose
from hypotheses.errors import UserError
from hypotheses.run import evaluate, run
from hypotheses.tasks import coco, dense, openmmlab

TASKS = ["coco", "ade20k"]
SMOKE = ["scale=smoke", "hardware=cpu", "hardware.threads=1"]


def smoke(task: str, paths: list[str], *overrides: str) -> dict:
    return compose([f"task={task}", *paths, *SMOKE, *overrides])


def job(config: dict, folder: Path) -> dense.Job:
    task = tasks.load(config["task"]["name"])
    return task.build(tasks.Run(config, data.prepare(config), folder))


def check_smoke_run(task: str, backbone: str, paths: list[str], tmp_path: Path, capsys, check_kept) -> None:
    """One valid record with pictures, skipped the second time."""
    config = smoke(task, paths, f"backbone={backbone}", "seed=3")
    made = run(config)
    assert made
    stored = record.read(record.path(config))
    assert stored == json.loads(json.dumps(made))
    found, known = stored["metrics"], metrics.METRICS[task]
    assert found.keys() == known.keys() | {"val_images"}
    assert all(0 <= found[name] <= 100 for name in known) and found["val_images"] == 2
    state = torch.load(tmp_path / "outputs" / made["address"] / "weights.pt", weights_only=True)
    assert all(value.isfinite().all() for value in state.values())
    # norms of batches keep means beside their parameters
    learned = [v for k, v in state.items() if not k.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    assert stored["cost"]["params"] == sum(v.numel() for v in learned) and stored["cost"]["macs"] > 0
    (row,) = stored["curve"]
    assert row["step"] == 2 and row["train_loss"] > 0 and row.keys() >= known.keys() - {"miou_multi_scale_percent"}
    beat = json.loads((tmp_path / "outputs" / made["address"] / "heartbeat.json").read_text())
    assert (beat["step"], beat["steps"], beat["seconds_left"]) == (2, 2, 0)
    check_kept(stored, tmp_path / "results")
    picture = Image.open(record.path(config).with_suffix(".jpg"))
    assert picture.width >= 2 * 96 and picture.height >= 2 * 96
    capsys.readouterr()
    assert run(config) == stored and "already recorded" in capsys.readouterr().out


@pytest.mark.parametrize(("task", "backbone"), [("coco", "mambaout_femto_ssm"), ("ade20k", "mambaout_atto")])
def test_a_smoke_run_leaves_one_valid_record(task, backbone, paths, tmp_path, capsys, check_kept):
    check_smoke_run(task, backbone, paths, tmp_path, capsys, check_kept)


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "task"), list(zip(trained(), itertools.cycle(TASKS), strict=False)))
def test_every_arm_makes_a_smoke_run(task, backbone, paths, tmp_path, capsys, check_kept):
    check_smoke_run(task, backbone, paths, tmp_path, capsys, check_kept)


# ---- what the arms of a seed share -----------------------------------------------------------------------------------


def sampler_of(loader) -> dense.KeyedSampler:
    """COCO's loader has its sampler inside the one that puts images of like shape into a batch."""
    return next(s for s in (loader.sampler, getattr(loader.batch_sampler, "sampler", None)) if hasattr(s, "set_epoch"))


def batches(made: dense.Job, number: int) -> list[list[torch.Tensor]]:
    """The images of the first batches of the training loader, as the loops would ask for them."""
    loader = made.runner.train_dataloader
    iterator, found = iter(loader), []
    for _ in range(number):
        if (batch := next(iterator, None)) is None:
            sampler_of(loader).set_epoch(sampler_of(loader).epoch + 1)
            iterator = iter(loader)
            batch = next(iterator)
        found.append(batch["inputs"])
    return found


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("task", ["coco", pytest.param("ade20k", marks=pytest.mark.slow)])
def test_order_and_augmentation_are_the_same_for_all_arms_and_workers(task, paths, tmp_path):
    """With mirroring and, in segmentation, random sizes and colours; over three epochs of two batches."""
    found = []
    for number, overrides in enumerate(
        (["backbone=mambaout_atto"], ["backbone=mambaout_atto_ssm"], ["hardware.workers=2"])
    ):
        made = job(smoke(task, paths, *overrides), tmp_path / str(number))
        torch.rand(number)  # what else the process draws does not matter
        np.random.rand(number)
        found.append(batches(made, 6))
    first, arm, workers = found
    for other in (arm, workers):
        assert all(equal(a, b) for a, b in zip(first, other, strict=True))
    drawn = {b"".join(x.numpy().tobytes() for x in batch) for batch in first}
    assert len(drawn) > 2  # an epoch has two batches: every epoch has an order and draws of its own
    seed = batches(job(smoke(task, paths, "seed=1"), tmp_path / "seed"), 1)
    assert [x.shape for x in seed[0]] != [x.shape for x in first[0]] or not equal(seed[0], first[0])


def test_two_processes_share_the_batches_of_one(monkeypatch):
    """The first two epochs of ten images in batches of four, in one iteration."""

    def drawn(world: int) -> list[list[int]]:
        monkeypatch.setenv("WORLD_SIZE", str(world))
        shares = []
        for rank in range(world):
            monkeypatch.setenv("RANK", str(rank))
            keys = iter(dense.KeyedSampler(range(10), 5, 4, endless=True))
            shares.append([next(keys) for _ in range(16 // world)])
        per = 4 // world  # of a process in a batch
        return [sorted(key for share in shares for key in share[i * per : (i + 1) * per]) for i in range(4)]

    alone = drawn(1)
    assert alone == drawn(2) == drawn(4)
    assert [key // 10 for batch in alone for key in batch] == [0] * 8 + [1] * 8
    assert len({key for batch in alone for key in batch}) == 16


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_the_same_seed_gives_the_same_metrics_and_weights_twice(task, paths, tmp_path):
    made = []
    for folder, seed in (("one", 0), ("two", 0), ("three", 1)):
        places = [paths[0], *(f"paths.{n}={tmp_path / folder / n}" for n in ("outputs", "results"))]
        torch.manual_seed(seed + 17)  # a process that has drawn before
        r = run(smoke(task, places, "backbone=mambaout_atto_ssm", f"seed={seed}"))
        assert r
        state = torch.load(next((tmp_path / folder).rglob("weights.pt")), weights_only=True)
        made.append((r["metrics"], r["curve"], torch.cat([v.double().flatten() for v in state.values()])))
    assert made[0][:2] == made[1][:2] and torch.equal(made[0][2], made[1][2])
    assert made[0][1] != made[2][1]


@pytest.mark.parametrize("task", TASKS)
def test_arms_start_from_the_same_values_and_norms_and_the_ssms_own_do_not_decay(task, paths, tmp_path):
    states = []
    for name in ("mambaout_atto", "mambaout_atto_ssm"):
        made = job(smoke(task, paths, f"backbone={name}"), tmp_path / name)
        made.runner._init_model_weights()
        states.append({k: v.clone() for k, v in made.runner.model.state_dict().items()})
    control, treated = states
    assert control.keys() < treated.keys() and all(torch.equal(control[k], treated[k]) for k in control)
    recipe = made.run.config["recipe"]
    wrapper = dense.AdamWOfRecipe({"type": "OptimWrapper", "optimizer": dict(recipe["optimizer"])})(made.runner.model)
    decayed, free = wrapper.optimizer.param_groups
    assert (decayed["weight_decay"], free["weight_decay"]) == (recipe["optimizer"]["weight_decay"], 0.0)
    names = {id(p): n for n, p in made.runner.model.named_parameters()}
    kept = {names[id(p)] for p in free["params"]}
    assert len(decayed["params"]) + len(kept) == len(names)
    for word in ("norm", "A_log", "dt_bias"):
        of_that = {n for n in names.values() if word in n}
        assert of_that and of_that <= kept, word
    own = {n for n, p in made.runner.model.named_parameters() if getattr(p, "no_weight_decay", False)}
    assert (
        own and kept == {n for n in names.values() if "norm" in n} | own
    )  # the rule of the libraries' configs for Swin


# ---- the paper's recipe ----------------------------------------------------------------------------------------------


def shipped(library: str, file: str):
    from mmengine.config import Config

    return Config.fromfile(Path(openmmlab.library(library).__file__).parent / ".mim/configs" / file)


def plain(value):
    """Tuples as lists, at any depth, so that configs from YAML and from Python compare."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize(
    ("task", "library", "file", "rate"),
    [
        ("coco", "mmdet", "swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py", 1e-4),
        ("ade20k", "mmseg", "swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py", 1e-4),
    ],
)
def test_the_paper_scale_is_the_shipped_config_for_swin_but_for_what_the_recipe_says(task, library, file, rate):
    swin = shipped(library, file)
    config = compose([f"task={task}", "scale=paper", "backbone=mambaout_tiny"])
    ours = tasks.load(task).config(tasks.Run(config, data.Images(Path("/data"), (), ""), Path("/nowhere")))
    assert swin.optim_wrapper.paramwise_cfg.custom_keys.keys() == {
        "absolute_pos_embed",
        "relative_position_bias_table",
        "norm",
    }  # what does not decay, by parts of names
    for key in ("param_scheduler", "train_cfg"):
        assert plain(ours[key]) == plain(swin[key]), key
    optimizer = dict(swin.optim_wrapper.optimizer)
    recipe = config["recipe"]["optimizer"]
    assert recipe == {"lr": rate, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": optimizer["weight_decay"]}
    assert config["recipe"]["batch_size"] == 8 * swin.train_dataloader.batch_size == 16
    for loader in ("train_dataloader", "val_dataloader"):
        assert plain(ours[loader].dataset.pipeline) == plain(swin[loader].dataset.pipeline), loader
        assert ours[loader].dataset.type == swin[loader].dataset.type
    for part in ("backbone", "neck"):
        ours.model.pop(part, None)
        swin.model.pop(part, None)
    for head in ("decode_head", "auxiliary_head"):
        if head in swin.model:
            ours.model[head].pop("in_channels")
            swin.model[head].pop("in_channels")
    assert plain(ours.model) == plain(swin.model)


# ---- what training starts from ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["mambaout_atto", "vit_atto"])
def test_a_backbone_starts_from_the_imagenet_run_of_its_seed(backbone, paths, tmp_path):
    asked = smoke("coco", paths, f"backbone={backbone}", "pretrained=imagenet", "seed=1")
    with pytest.raises(
        UserError, match=rf"no finished run smoke/imagenet/{backbone}/seed_1 .*task=imagenet scale=smoke"
    ):
        run(asked)
    assert run(smoke("imagenet", paths, f"backbone={backbone}", "seed=1"))
    found = pretrained.find(asked)
    assert found and found.source == "imagenet"
    state = torch.load(found.file, weights_only=True)
    made = coco.build(tasks.Run(asked, data.prepare(asked), tmp_path / "x", str(found.file)))
    made.runner._init_model_weights()
    network = made.runner.model.backbone.network.state_dict()
    assert network and all(torch.equal(tensor, state[f"backbone.{name}"]) for name, tensor in network.items())
    first, plain_run = run(asked), run(smoke("coco", paths, f"backbone={backbone}", "seed=1", "tag=none"))
    assert first and plain_run and first["identity"] != plain_run["identity"]
    assert first["provenance"]["pretrained"] == found.sha256 and plain_run["provenance"]["pretrained"] is None
    assert run(asked) == first
    # other weights are another run
    state["backbone.patch_embed.bias" if backbone == "vit_atto" else "backbone.stages.0.0.fc1.bias"] += 1
    torch.save(state, found.file)
    with pytest.raises(UserError, match=r"left by another configuration .*recipe\.pretrained"):
        run(asked)


@pytest.mark.slow
def test_on_the_command_line_too(paths, tmp_path, command):
    """Where Hydra is at work already when the ImageNet run's own config is composed."""
    for task in (["task=imagenet"], ["task=coco", "pretrained=imagenet"]):
        done = command("hypotheses.run", *task, *SMOKE, *paths)
        assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "results/records/smoke/coco").rglob("*.json")
    assert record.read(file)["provenance"]["pretrained"]


def test_published_weights_are_a_start_and_the_wrong_ones_are_refused(paths, tmp_path):
    import timm

    model = timm.create_model("mambaout_femto", pretrained=False)
    torch.save(model.state_dict(), tmp_path / "femto.pth")
    asked = smoke("ade20k", paths, "backbone=mambaout_femto", f"pretrained={tmp_path / 'femto.pth'}")
    made = run(asked)
    assert made and made["provenance"]["pretrained"] == pretrained.find(asked).sha256  # type: ignore[union-attr]
    with pytest.raises(UserError, match="does not fit this network"):
        run(asked | {"backbone": compose(["backbone=mambaout_atto"])["backbone"]})
    with pytest.raises(UserError, match="no such file"):
        run(smoke("ade20k", paths, "backbone=mambaout_femto", f"pretrained={tmp_path / 'gone.pth'}"))


@pytest.mark.parametrize(
    ("given", "message"), [("seed=0", "add seed=1"), ("backbone=vit_atto_causal", "add backbone=vit_atto")]
)
def test_weights_that_have_seen_the_validation_images_or_are_another_arms_are_refused(given, message, paths):
    made = run(smoke("imagenet", paths, "backbone=vit_atto", "seed=1"))
    assert made
    weights = Path(paths[1].split("=")[1], made["address"], "weights.pt")
    with pytest.raises(UserError, match=message):
        run(smoke("coco", paths, "backbone=vit_atto", "seed=1", f"pretrained={weights}", given))


def test_a_run_of_another_recipe_is_no_start(paths):
    assert run(smoke("imagenet", paths, "recipe.epochs=2"))
    with pytest.raises(UserError, match=r"is of another recipe .*recipe\.epochs was 2, not 1"):
        run(smoke("coco", paths, "pretrained=imagenet"))


# ---- evaluation ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("task", ["coco", "ade20k"])
def test_an_evaluation_of_a_runs_weights_gives_its_metrics(task, paths, tmp_path, capsys):
    made = run(smoke(task, paths))
    assert made
    weights = tmp_path / "outputs" / made["address"] / "weights.pt"
    result = evaluate(smoke(task, paths, "mode=eval", "scale=smoke", f"weights={weights}"))
    assert result and result["metrics"] == made["metrics"]
    assert metrics.METRICS[task][next(iter(metrics.METRICS[task]))].title in capsys.readouterr().out
    with pytest.raises(UserError, match=r"are not those of a run of this task, backbone and scale .*missing"):
        evaluate(smoke(task, paths, "mode=eval", "scale=smoke", "backbone=mambaout_atto_ssm", f"weights={weights}"))


@pytest.mark.slow
def test_one_size_without_mirroring_is_the_plain_evaluation(paths):
    one = run(smoke("ade20k", paths, "recipe.multi_scale.scales=[1.0]", "recipe.multi_scale.flip=false"))
    assert one and one["metrics"]["miou_multi_scale_percent"] == one["metrics"]["miou_percent"]


def test_an_image_of_which_nothing_is_annotated_is_drawn_as_it_is():
    from hypotheses.tasks import ade20k

    image = torch.zeros(3, 96, 96, dtype=torch.uint8)
    nothing = SimpleNamespace(gt_sem_seg=SimpleNamespace(data=torch.full((1, 96, 96), 255)))
    assert ade20k.draw(image, nothing, False, ["a", "b"]).sum() == 0


def test_a_picture_that_cannot_be_drawn_loses_no_run(paths, monkeypatch, capsys):
    monkeypatch.setattr(coco, "pictures", lambda job: 1 / 0)
    config = smoke("coco", paths)
    assert run(config) and record.path(config).exists()
    assert "no pictures were drawn (ZeroDivisionError" in capsys.readouterr().err


def test_the_units_of_the_libraries_are_ours():
    assert metrics.ours("coco", {"coco/bbox_mAP": 0.429})["box_ap_percent"] == 42.9
    assert metrics.ours("coco", {})["mask_ap_percent"] == 0.0  # nothing was detected
    assert metrics.ours("ade20k", {"mIoU": 29.28, "aAcc": 90, "mAcc": 40})["miou_percent"] == 29.28
    with pytest.raises(KeyError):
        metrics.ours("ade20k", {})  # there is no image without pixels


@pytest.mark.slow
def test_pictures_show_the_same_annotations_in_every_arm(paths):
    sheets = []
    for name in ("mambaout_atto", "mambaout_atto_identity"):
        config = smoke("ade20k", paths, f"backbone={name}")
        run(config)
        sheets.append(np.asarray(Image.open(record.path(config).with_suffix(".jpg"))).astype(float))
    middle = sheets[0].shape[1] // 2 - 8  # JPEG's blocks
    assert np.array_equal(sheets[0][:, :middle], sheets[1][:, :middle])
    assert not np.array_equal(sheets[0][:, middle:], sheets[1][:, middle:])


# ---- the bridge ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_mask_rcnn_learns_a_few_scenes_by_heart(paths, tmp_path, monkeypatch):
    """Boxes and masks of torchvision's NMS and RoIAlign under mmdet, forwards and backwards: evaluated on what it has seen."""
    config = compose(
        [
            "task=coco", *paths, "scale=demo", "hardware=cpu", "recipe.data.train_images=4", "recipe.data.val_images=1",
            "recipe.epochs=120", "recipe.validate_every=120", "recipe.optimizer.lr=2e-3", "recipe.schedule.warmup_steps=10",
            "recipe.schedule.milestones=[90,110]",
        ]
    )  # fmt: skip
    real = coco.config

    def on_what_it_has_seen(asked):
        cfg = real(asked)
        for key in ("ann_file", "data_prefix"):
            cfg.val_dataloader.dataset[key] = cfg.train_dataloader.dataset[key]
        cfg.val_evaluator.ann_file = cfg.val_evaluator.ann_file.replace("val2017", "train2017")
        return cfg

    monkeypatch.setattr(coco, "config", on_what_it_has_seen)
    made = job(config, tmp_path / "run")
    dense.train(made)
    found = dense.evaluate(made)
    assert found["box_ap_percent"] > 70 and found["mask_ap_percent"] > 50, found
    kept = dense.predictions(made)  # of which the resampled metrics are made
    for name, value in found.items():
        if name != "val_images":
            again = bootstrap.resampled(name, kept, np.ones((1, bootstrap.size(kept)), int))[0]
            assert again == pytest.approx(value, abs=0.0501), name


# ---- mistakes and accidents ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+recipe.model.backbone.depth=3"], "recipe.model"),
        (["+recipe.model.nek.out_channels=3"], "recipe.model"),
        (["recipe.num_classes=5"], r"1[01] of the 5 classes of recipe\.num_classes are annotated"),
        (["recipe.batch_size=64"], "recipe.batch_size=64 is more than the images for training"),
        (["recipe.precision=16-mixed"], "is for GPUs: use bf16-mixed or 32-true on a CPU"),
    ],
)
@pytest.mark.parametrize("task", TASKS)
def test_what_does_not_fit_is_an_error_that_names_it(task, overrides, message, paths):
    with pytest.raises(UserError, match=message) as error:
        run(smoke(task, paths, *overrides))
    assert "\n" not in str(error.value)


def test_one_image_at_a_time_is_refused_where_a_norm_of_batches_would_learn_from_it_alone(paths, tmp_path):
    alone = "hardware.max_batch_per_device=1"
    with pytest.raises(
        UserError, match=r"nothing to learn from: have at least 2, by recipe\.batch_size and hardware\.max_"
    ):
        run(smoke("ade20k", paths, alone))
    job(smoke("ade20k", paths, alone, "+recipe.model.decode_head.norm_cfg={type: GN, num_groups: 8}"), tmp_path)
    job(smoke("coco", paths, alone), tmp_path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=imagenet", "pretrained=none"], "it is what training of coco and ade20k starts from"),
        (["task=coco", "recipe.flip=often"], "recipe.flip"),
        (["task=coco", "recipe.fliip=0.5"], "no key 'recipe.fliip'; did you mean recipe.flip"),
        (["task=coco", "recipe.resize=[96]"], "recipe.resize=.96.: give two numbers of pixels"),
        (["task=coco", "recipe.data.source=digits"], "choose one of scenes, coco for task=coco"),
        (["task=coco", "recipe.flip=2"], "recipe.flip=2.0: give a share from 0 to 1"),
        (["task=coco", "recipe.schedule.milestones=[99]"], "milestones=.99.: give epochs below epochs=5"),
        (["task=ade20k", "recipe.ratios=[1.0]"], "recipe.ratios=.1.0.: give the least and the largest"),
        (["task=ade20k", "recipe.multi_scale={scales: [1.0]}"], "give scales=.0.5, 1.0, .... and flip=true or false"),
        (
            ["task=coco", "scale=paper", "recipe.data.source=scenes"],
            "recipe.data.train_images=None: say how many scenes",
        ),
        (["task=ade20k", "recipe.drop_path=1.5"], "recipe.drop_path=1.5: give a number from 0 and below 1"),
        (["task=ade20k", "recipe.schedule.warmup_steps=100000"], "give fewer than steps="),
        (["task=coco", "~recipe"], "task=coco has no scale=demo: choose one of demo, paper, pilot, smoke"),
    ],
)
def test_a_wrong_value_is_refused_before_anything_is_read(overrides, message):
    with pytest.raises(UserError, match=message):
        compose(overrides)


@pytest.mark.parametrize("task", TASKS)
def test_an_image_that_cannot_be_read_is_named_and_not_replaced_by_another(task, paths, tmp_path):
    config = smoke(task, paths)
    images = data.prepare(config)
    shutil.copytree(images.root, tmp_path / "broken")  # type: ignore[arg-type]
    for file in (tmp_path / "broken").rglob("*.jpg"):
        file.write_bytes(file.read_bytes()[:100])
    made = tasks.load(task).build(
        tasks.Run(config, dataclasses.replace(images, root=tmp_path / "broken"), tmp_path / "r")
    )
    with pytest.raises(UserError, match=r"broken/.*\.jpg or its annotation cannot be read .*mend or replace it"):
        dense.train(made)


@pytest.mark.parametrize("task", TASKS)
def test_a_loss_that_is_no_number_ends_the_run(task, paths, tmp_path):
    config = smoke(task, paths, "recipe.optimizer.lr=1e30", "recipe.schedule.warmup_factor=1.0")
    with pytest.raises((FloatingPointError, UserError), match="loss is"):
        run(config)
    assert not record.path(config).exists()


def test_what_the_library_calls_an_error_is_said_and_is_no_traceback(paths, tmp_path, capsys):
    """A detector that has learnt nothing may detect nothing."""
    made = job(smoke("coco", paths), tmp_path / "r")
    made.runner.model.roi_head.test_cfg.score_thr = 1.0
    assert dense.evaluate(made)["box_ap_percent"] == 0
    said = capsys.readouterr().err
    assert "The testing results of the whole dataset is empty" in said and "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_two_processes_leave_one_record(task, paths, tmp_path, command, check_kept):
    ddp = ["hardware=ddp", "hardware.accelerator=cpu", "hardware.devices=2", "hardware.threads=1"]
    few = ["recipe.batch_size=4", "recipe.data.val_images=3"]  # that do not divide by two
    done = command("hypotheses.run", f"task={task}", "scale=smoke", *few, *ddp, *paths)
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "results").rglob("*.json")
    r = record.read(file)
    assert r["metrics"]["val_images"] == 3 and r["provenance"]["hardware"]["devices"] == 2
    assert r["metrics"].keys() == metrics.METRICS[task].keys() | {"val_images"}
    assert len(list((tmp_path / "results").rglob("*.jpg"))) == 1
    check_kept(r, tmp_path / "results")


def test_pictures_are_small(paths):
    config = smoke("coco", paths)
    run(config)
    assert record.path(config).with_suffix(".jpg").stat().st_size < 200_000
