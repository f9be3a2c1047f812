"""Every YAML composes, says its command, and nothing heavy is imported to explain them."""

import functools
import re
import subprocess
import sys
from typing import Any

import pytest

from conftest import BACKBONES
from hypotheses import backbones, cost, experiment, record
from hypotheses.config import CONF, ROOT, compose
from hypotheses.errors import UserError

GROUPS = {p.name: sorted(f.stem for f in p.glob("*.yaml")) for p in CONF.iterdir() if p.is_dir()}


of_plans = pytest.mark.xdist_group("plans")  # so that what one test has composed the others have


@functools.cache
def planned(scale: str, task: str, arm: str) -> dict[str, Any]:
    """The configuration of the first seed."""
    return experiment.config_of(scale, task, arm, 0, [])


@pytest.mark.parametrize("option", [f"{g}={o}" for g in ("scale", "hardware", "recipe") for o in GROUPS[g]])
def test_every_option_composes(option):
    group, name = option.split("=")
    task = [f"task={name.split('_')[0]}"] if group == "recipe" else []
    assert compose([option, *task])[group]["name"] == name


@pytest.mark.parametrize("scale", GROUPS["scale"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_composes_at_every_scale(backbone, scale):
    config = compose([f"backbone={backbone}", f"scale={scale}"])
    assert config["backbone"]["name"] == backbone
    assert config["recipe"]["name"] == f"imagenet_{scale}"
    assert not re.search(r"\$\{|\?\?\?", str(config))


@pytest.mark.parametrize("task", GROUPS["task"])
@pytest.mark.parametrize("scale", GROUPS["scale"])
def test_a_task_composes_at_its_scales_and_names_them_at_others(task, scale):
    if f"{task}_{scale}" in GROUPS["recipe"]:
        config = compose([f"task={task}", f"scale={scale}"])
        assert (config["task"]["name"], config["recipe"]["name"]) == (task, f"{task}_{scale}")
    else:
        with pytest.raises(UserError, match=f"task={task} has no scale={scale}: choose one of demo, "):
            compose([f"task={task}", f"scale={scale}"])


@pytest.mark.parametrize("task", ["coco", "ade20k"])
def test_the_dropped_paths_of_detection_and_segmentation_follow_the_size_not_the_arm(task):
    rates = {
        name: compose([f"task={task}", "scale=paper", f"backbone={name}"])["recipe"]["drop_path"]
        for name in ("mambaout_tiny", "mambaout_tiny_ssm", "mambaout_small_sham", "mambaout_base", "mambaout_femto")
    }
    assert list(rates.values()) == [0.3, 0.3, 0.4, 0.6, 0.025]


@pytest.mark.parametrize("file", sorted(CONF.rglob("*.yaml")), ids=lambda f: f.relative_to(CONF).as_posix())
def test_every_yaml_starts_with_its_command(file):
    first = file.read_text().removeprefix("# @package _global_\n").splitlines()[0]  # Hydra wants that in front
    assert re.match(r"# (python|torchrun .*) -m hypotheses\.run ", first)
    asked = [word for word in first.split("hypotheses.run ")[1].split() if "=" in word]
    if file.parent != CONF and file.parent.name != "recipe":
        assert f"{file.parent.name}={file.stem}" in asked
    compose(asked)


def test_the_published_patch_is_as_if_it_were_not_there():
    """So what was run before there was such a key keeps its identity."""
    assert "patch" not in compose(["backbone=mambaout_atto"])["backbone"]
    assert compose(["backbone=mambaout_atto", "backbone.patch=2"])["backbone"]["patch"] == 2
    assert compose(["backbone=vit_atto"])["backbone"]["patch"] == 4


@pytest.mark.parametrize("task", ["coco", "ade20k", "recall"])
def test_a_dose_is_of_classification(task):
    with pytest.raises(
        UserError, match=rf"^recipe.image_size=32: task={task} takes .* a dose, which sets it, is for task=imagenet$"
    ):
        compose([f"task={task}", "dose=d24_p4_32px"])


@pytest.mark.parametrize("patch", ["[4]", "3", "true", "four"])
def test_a_patch_that_no_stem_has_is_said(patch):
    with pytest.raises(UserError, match=r"backbone\.patch=.*: choose one of 1, 2, 4, 8, 16$"):
        backbones.build(compose(["backbone=mambaout_atto", f"backbone.patch={patch}"])["backbone"])


@pytest.mark.parametrize("dose", GROUPS["dose"])
def test_a_dose_is_what_it_says(dose):
    """Its name is the address of its runs; the number of its comment is that of hypotheses.cost."""
    config = compose(["backbone=mambaout_atto_k13", f"dose={dose}"])
    assert record.address(config) == f"demo/imagenet/mambaout_atto_k13+{dose}/seed_0"
    width, patch, pixels = re.fullmatch(r"d(\d+)_p(\d+)_(\d+)px", dose).groups()  # type: ignore[union-attr]
    (stage,) = cost.stages(config["backbone"], *cost.image_size(config, None))
    assert (stage.channels, stage.stride, config["recipe"]["image_size"]) == (int(width), int(patch), int(pixels))
    said = (CONF / "dose" / f"{dose}.yaml").read_text()
    assert f"# {stage.tokens} tokens of {width} channels in {stage.blocks} blocks, L/(6D) = {stage.ratio:.2f}: " in said


def test_an_interpolated_value_is_typed_once():
    small = compose(["backbone=mambaout_small", "scale=paper"])
    assert small["recipe"]["drop_path"] == small["backbone"]["drop_path"] == 0.4


def test_help_explains_the_groups_without_importing_torch(command):
    code = (
        "import runpy, sys\n"
        "sys.argv = ['run', '--help']\n"
        "try:\n    runpy.run_module('hypotheses.run', run_name='__main__')\n"
        "finally:\n    print({'torch', 'lightning', 'mmdet', 'pandas', 'scipy'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.strip().endswith("set()"), done.stdout + done.stderr
    for word in ("task", "backbone", "scale", "hardware", "mambaout_small_ssm", "Examples:"):
        assert word in done.stdout
    assert done.stdout.count("python -m hypotheses.run task=") == 4


def test_the_examples_of_help_compose(command):
    shown = command("hypotheses.run", "--help").stdout
    examples = re.findall(r"^  python -m hypotheses\.run (.*)$", shown, re.M)
    assert len(examples) == 4
    for example in examples:
        compose(example.split())


def test_folders_and_devices_are_no_part_of_a_runs_identity():
    one = compose(["hardware=cpu"])
    other = compose(["hardware=gpu", "paths.outputs=/elsewhere", "hardware.workers=3"])
    assert record.identity(one, "data") == record.identity(other, "data")
    assert record.identity(one, "data") != record.identity(one, "other data")
    assert record.identity(one, "data") != record.identity(compose(["seed=1"]), "data")
    assert record.identity(one, "data") != record.identity(compose(["recipe.epochs=3"]), "data")


@of_plans
@pytest.mark.parametrize("file", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda f: f.stem)
def test_every_experiment_names_runs_that_compose(file):
    hypothesis = experiment.parse(file)
    assert file.read_text().startswith("# make sweep HYP=")
    for scale, arms in hypothesis.scales.items():
        for task in hypothesis.tasks:
            for arm in arms.all():
                assert record.arm(planned(scale, task, arm)) == arm


def test_the_configs_of_many_runs_are_those_of_each(tmp_path):
    runs = [
        ("recall", "mambaout_atto", 1),
        ("imagenet", "mambaout_atto_ssm+d24_p4_16px", 0),
        ("imagenet", "mambaout_atto", 3),
    ]
    runs += [(task, arm, seed + 4) for task, arm, seed in runs]
    words = ["hardware=cpu", f"paths.results={tmp_path}"]
    assert experiment.configs_of("demo", runs, words) == [experiment.config_of("demo", *run, words) for run in runs]


@of_plans
@pytest.mark.parametrize("dose", experiment.load("4").scales["demo"].each_dose())
def test_the_arms_of_a_dose_differ_in_one_key_and_doses_in_none_but_their_own(dose):
    hypothesis = experiment.load("4")
    arms = hypothesis.scales["demo"].at(dose)
    control = planned("demo", "imagenet", arms.control)
    for arm in arms.of_a_dose()[1:]:
        other = planned("demo", "imagenet", arm)
        changed = {key for key, _, _ in record.differences(control, other)}
        assert len(changed) == 2 and "backbone.name" in changed and changed <= set(hypothesis.pair_may_differ)
    without = planned("demo", "imagenet", "mambaout_atto")
    varied = {key for key, _, _ in record.differences(without, control)}
    assert varied <= {"tag", "backbone.dims", "backbone.depths", "backbone.patch", "recipe.image_size", "recipe.epochs"}


@of_plans
@pytest.mark.parametrize("number", ["1", "2", "3"])
@pytest.mark.parametrize("scale", ["demo", "pilot", "paper"])
def test_the_arms_of_a_contrast_differ_in_one_key(number, scale):
    hypothesis = experiment.load(number)
    if scale not in hypothesis.scales:
        pytest.skip("not registered at this scale")
    arms = hypothesis.scales[scale]
    for task in hypothesis.tasks:
        control = planned(scale, task, arms.control)
        for arm in arms.registered()[1:]:
            changed = {k for k, _, _ in record.differences(control, planned(scale, task, arm))}
            assert changed <= set(hypothesis.pair_may_differ)
            if number == "3" and arm == arms.negative_control:  # of full attention, so neither causal nor attention
                assert changed == set(hypothesis.pair_may_differ)
            else:
                assert len(changed) == 2 and "backbone.name" in changed
        for contrast in arms.extra:
            pair = [planned(scale, task, name) for name in (contrast.control, contrast.treatment)]
            changed = {k for k, _, _ in record.differences(*pair)}
            assert len(changed) == 2 and "backbone.name" in changed
