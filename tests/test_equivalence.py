"""The same training, computed otherwise: over several processes, in several passes, with a recipe's switches, in bfloat16."""

import pytest
import torch

from hypotheses import backbones, data, record, tasks
from hypotheses.config import SWITCHES, compose
from hypotheses.cost import activation_bytes
from hypotheses.run import run

# Without what makes a part of a batch depend on the rest of it, or on the process: dropout and the norms of batches (the demo's heads
# have neither), class weights, by whose sum UPerNet divides; of a detector the random choice of anchors and boxes (here all are taken,
# and as many of every image), and its masks, whose loss is a mean over however many objects there are.
SCENES = "recipe.data={source: scenes, train_images: 8, val_images: 2}"
ALONE = {
    "imagenet": ["scale=smoke", "recipe.mix=null", "recipe.drop_path=0.0",
                 "recipe.data={source: random, train_images: 32, val_images: 8}"],
    "ade20k": ["scale=demo", SCENES, "recipe.steps=2", "recipe.schedule={warmup_steps: 1, warmup_factor: 1.0}",
               "recipe.validate_every=2", "recipe.model.decode_head.loss_decode.class_weight=null",
               "recipe.model.auxiliary_head.loss_decode.class_weight=null"],
    "coco": ["scale=demo", SCENES, "recipe.epochs=1", "recipe.schedule={warmup_factor: 1.0, milestones: []}",
             "++recipe.model.train_cfg.rpn.sampler.num=100000", "++recipe.model.train_cfg.rcnn.sampler.num=100000",
             "++recipe.model.train_cfg.rcnn.sampler.add_gt_as_proposals=false",
             "++recipe.model.train_cfg.rpn_proposal.max_per_img=20",
             "++recipe.model.roi_head.mask_head.loss_mask.loss_weight=0.0"],
}  # fmt: skip
# of AdamW's steps only those far below eps are in proportion to the gradient: others blow up the rounding of small gradients
SMOKE = ["hardware.threads=1", "recipe.optimizer={lr: 1.0, eps: 1.0, weight_decay: 0.0}"]
CPU = ["hardware=cpu"]
DENSE = [pytest.param(task, marks=pytest.mark.slow) for task in ("ade20k", "coco")]
TWO = ["hardware=ddp", "hardware.accelerator=cpu", "hardware.devices=2"]


def weights(tmp_path, address):
    state = torch.load(tmp_path / "outputs" / address / "weights.pt")
    return torch.cat([v.flatten().double() for v in state.values() if v.is_floating_point()])


def trained(paths, tmp_path, task, tag, *overrides):
    result = run(compose([f"task={task}", *SMOKE, *CPU, *paths, *ALONE[task], *overrides, f"tag={tag}"]))
    assert result
    return result, weights(tmp_path, result["address"])


def agree(one, two, before):
    """To rounding: beside what the training has changed, the difference is small."""
    moved = (one - before).norm()
    assert moved > 0 and (one - two).norm() < 1e-3 * moved, ((one - two).norm() / moved).item()


def initial(paths, tmp_path, task, backbone="mambaout_atto"):
    """The weights that every run begins with."""
    config = compose([f"task={task}", f"backbone={backbone}", *SMOKE, *CPU, *paths, *ALONE[task]])
    job = tasks.load(task).build(tasks.Run(config, data.prepare(config), tmp_path))
    model = job.module.model if task == "imagenet" else job.runner.model
    if task != "imagenet":
        model.init_weights()
    return torch.cat([v.flatten().double() for v in model.state_dict().values() if v.is_floating_point()])


@pytest.mark.parametrize("task", ["imagenet", *DENSE])
def test_in_passes_as_at_once(task, paths, tmp_path):
    whole, one = trained(paths, tmp_path, task, "whole")
    parts, two = trained(paths, tmp_path, task, "parts", "hardware.max_batch_per_device=2")
    assert whole["identity"] == parts["identity"]
    agree(one, two, initial(paths, tmp_path, task))
    for a, b in zip(whole["curve"], parts["curve"], strict=True):
        assert b["train_loss"] == pytest.approx(a["train_loss"], rel=1e-3)
    attempts = [r["provenance"]["attempts"][-1]["images"] for r in (whole, parts)]
    assert attempts[0] > attempts[1] == 2  # on the record


@pytest.mark.slow
@pytest.mark.parametrize(("task", "most"), [*((task, 512) for task in ALONE), ("imagenet", 1), ("ade20k", 1)])
def test_by_two_processes_as_by_one(task, most, paths, tmp_path, command):
    """At once, and each in several passes."""
    whole, one = trained(paths, tmp_path, task, "one")
    words = [*SMOKE, *TWO, *paths, *ALONE[task], f"hardware.max_batch_per_device={most}", "tag=two"]
    done = command("hypotheses.run", f"task={task}", *words)
    assert done.returncode == 0, done.stderr
    two = record.read(next((tmp_path / "results").rglob("*+two/seed_0.json")))
    assert whole["identity"] == two["identity"] and two["provenance"]["attempts"][-1]["processes"] == 2
    agree(one, weights(tmp_path, two["address"]), initial(paths, tmp_path, task))
    assert two["metrics"]["val_images"] == whole["metrics"]["val_images"]
    for a, b in zip(
        whole["curve"], two["curve"], strict=True
    ):  # of detection and segmentation it is the main process's share
        assert b["train_loss"] == pytest.approx(a["train_loss"], rel=1e-3 if task == "imagenet" else 0.3)


@pytest.mark.parametrize(("task", "backbone"), [("imagenet", "mambaout_atto_ssm"), ("imagenet", "vit_atto"), ("ade20k", "mambaout_atto"), pytest.param("coco", "mambaout_atto", marks=pytest.mark.slow)])  # fmt: skip
def test_gradient_checkpointing_changes_no_bit(task, backbone, paths, tmp_path):
    asked = [f"backbone={backbone}", "recipe.drop_path=0.3"]
    plain, one = trained(paths, tmp_path, task, "plain", *asked)
    less, two = trained(paths, tmp_path, task, "less", *asked, "recipe.gradient_checkpointing=true")
    assert torch.equal(one, two)
    assert less["config"]["recipe"]["gradient_checkpointing"] is True and less["identity"] != plain["identity"]


@pytest.mark.parametrize("backbone", ["mambaout_tiny_ssm", "vit_small"])
def test_gradient_checkpointing_keeps_less(backbone):
    config, image = compose(["scale=paper", f"backbone={backbone}"]), torch.empty(1, 3, 224, 224, device="meta")
    with torch.device("meta"):
        plain, less = (backbones.build(config["backbone"]) for _ in range(2))
    backbones.compute_as(less, {"gradient_checkpointing": True})
    assert activation_bytes(less, image) < 0.3 * activation_bytes(plain, image)


@pytest.mark.parametrize("task", ["imagenet", DENSE[0]])
def test_channels_last_changes_rounding_alone(task, paths, tmp_path):
    _, one = trained(paths, tmp_path, task, "plain")
    result, two = trained(paths, tmp_path, task, "last", "recipe.channels_last=true")
    agree(one, two, initial(paths, tmp_path, task))
    assert result["config"]["recipe"]["channels_last"] is True


@pytest.mark.slow
@pytest.mark.parametrize(("task", "backbone"), [("imagenet", "mambaout_atto_ssm"), ("imagenet", "vit_atto"), ("ade20k", "mambaout_atto_ssm")])  # fmt: skip
def test_a_compiled_backbone_trains_as_a_plain_one(task, backbone, paths, tmp_path):
    asked = [f"backbone={backbone}"]
    _, one = trained(paths, tmp_path, task, "plain", *asked)
    result, two = trained(paths, tmp_path, task, "compiled", *asked, "recipe.compile=true")
    agree(one, two, initial(paths, tmp_path, task, backbone))
    assert result["config"]["recipe"]["compile"] is True


@pytest.mark.parametrize("task", ["imagenet", *DENSE])
def test_mixed_bfloat16_on_a_cpu(task, paths, tmp_path):
    _, one = trained(paths, tmp_path, task, "plain")
    result, two = trained(paths, tmp_path, task, "mixed", "recipe.precision=bf16-mixed")
    assert result["config"]["recipe"]["precision"] == "bf16-mixed"
    assert two.isfinite().all() and not torch.equal(one, two)


def test_a_switch_that_is_off_is_as_if_it_were_not_there(paths):
    """So that records from before there was such a switch stay what they are."""
    for task in ("imagenet", "recall", "coco", "ade20k"):
        off = compose([f"task={task}", *paths])
        assert not set(SWITCHES) & off["recipe"].keys()
        for switch in SWITCHES:
            on = compose([f"task={task}", *paths, f"recipe.{switch}=true"])
            assert on["recipe"] == off["recipe"] | {switch: True}
            assert record.identity(on, "data") != record.identity(off, "data")
