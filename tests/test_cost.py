"""The cost table: published numbers, memory measured on real tensors, lengths of the paper, and mistakes in one line."""

import json
import re
import subprocess
import sys

import pytest
import torch

from hypotheses import backbones, cost
from hypotheses.backbones import kernels, products
from hypotheses.config import ROOT
from hypotheses.errors import UserError

COCO, ADE20K = (800, 1280), (512, 2048)  # pixels, height and width

# without head; fvcore 0.1.5 on the official model files
PARAMETERS = {"femto": 5_815_728, "kobe": 7_652_400, "tiny": 22_904_928, "small": 44_847_904, "base": 79_370_044}
GMACS = {"tiny": (91.5, 93.7), "small": (182.8, 187.2), "base": (322.9, 330.6)}  # at COCO's and ADE20K's sizes
GMACS_288 = {"femto": 1.910, "kobe": 2.504, "tiny": 7.413, "small": 14.81, "base": 26.158}  # with head, 288 pixels


def config(name: str) -> dict:
    return cost.compose(["task=coco", f"backbone={name}"])["backbone"]


def as_json(capsys, *arguments: str) -> dict:
    assert cost.main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("size", PARAMETERS)
def test_published_parameters_without_head_and_macs_with_head(size):
    network = config(f"mambaout_{size}")
    model, _ = cost.on_meta(network, None, 32, 32)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[size]
    assert cost.count(network, 1000, 288, 288)["macs"] == pytest.approx(1e9 * GMACS_288[size], rel=1e-3)


@pytest.mark.parametrize("size", GMACS)
@pytest.mark.parametrize("task", [0, 1], ids=["coco", "ade20k"])
def test_macs_of_the_backbone_at_the_sizes_of_the_dense_tasks(size, task):
    total = cost.macs(*cost.on_meta(config(f"mambaout_{size}"), None, *(COCO, ADE20K)[task])).total
    assert total == pytest.approx(1e9 * GMACS[size][task], rel=1e-3)


def test_the_split_of_the_macs():
    E, N, R, tokens, blocks = 48, 8, 3, 64, 4
    convolution = blocks * tokens * E * 49
    scan = blocks * tokens * 2 * E * (9 * N + 1)
    projections = blocks * tokens * 2 * (E * (R + 2 * N) + R * E)
    attention = blocks * 2 * tokens**2 * E
    split = {n: cost.macs(*cost.on_meta(config(f"{n}"), None, 32, 32)) for n in ("mambaout_atto_ssm", "vit_atto")}
    assert (split["mambaout_atto_ssm"].mixing, split["mambaout_atto_ssm"].scan) == (
        convolution + scan + projections,
        scan,
    )
    assert (split["vit_atto"].mixing, split["vit_atto"].scan) == (attention, 0)
    plain, none = (cost.macs(*cost.on_meta(config(f"mambaout_atto{s}"), None, 32, 32)) for s in ("", "_identity"))
    assert plain.total - none.total == plain.mixing == convolution and none.mixing == 0


@pytest.mark.parametrize(
    "name",
    ["mambaout_atto", "mambaout_femto", "vit_atto", "vit_atto_causal"]
    + [f"mambaout_atto_{arm}" for arm in ("identity", "act", "ssm", "ssm_causal", "ssm_cross", "sham")],
)
def test_activations_are_what_autograd_keeps_of_real_tensors(name, monkeypatch):
    scan = kernels.library("scan")
    if ("ssm" in name or "sham" in name) and scan is None:
        pytest.skip("the chunked scan keeps more than the compiled one, which is counted")
    # counted are plain PyTorch and the compiled scan: what fused kernels of a CPU keep is less
    monkeypatch.setattr(kernels, "library", lambda library: scan if library == "scan" else None)
    monkeypatch.setattr(products, "slow_mkl", lambda: False)
    network = config(name)
    model = backbones.build(network)
    backbones.initialise(model, 0, "published")
    real = cost.activation_bytes(model, torch.randn(1, 3, 64, 96))
    assert cost.measure(network, None, 64, 96).activation_bytes == real


def test_activations_of_a_network_that_can_be_counted_by_hand():
    """A linear layer keeps its input, GELU its input, and the second linear layer GELU's output; weights do not count."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.GELU(), torch.nn.Linear(8, 2))
    assert cost.activation_bytes(model, torch.randn(5, 3)) == 4 * 5 * (3 + 8 + 8)


def test_activations_of_attention_grow_with_the_tokens_and_not_with_their_square():
    one, two = (cost.measure(config("vit_small"), None, 224, w).activation_bytes for w in (224, 448))
    assert two / one == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize(
    ("size", "ratios"),
    [
        ((224, 224), ["5.44", "0.68", "0.09", "0.01"]),
        (COCO, ["111.11", "13.89", "1.74", "0.29"]),
        (ADE20K, ["113.78", "14.22", "1.78", "0.30"]),
    ],
)
def test_lengths_of_mambaout(size, ratios):
    found = cost.stages(config("mambaout_tiny"), *size)
    assert [f"{s.ratio:.2f}" for s in found] == ratios
    assert [s.long for s in found] == [float(r) > 1 for r in ratios]
    assert [s.stride for s in found] == [4, 8, 16, 32] and [s.blocks for s in found] == [3, 3, 9, 3]
    assert [s.tokens for s in found] == [size[0] // s * (size[1] // s) for s in (4, 8, 16, 32)]


def test_lengths_of_vit_and_the_thresholds_of_the_paper():
    for size, tokens in (((224, 224), 196), (COCO, 4000), (ADE20K, 4096)):
        (small,), (base,) = (cost.stages(config(f"vit_{n}"), *size) for n in ("small", "base"))
        assert small.tokens == base.tokens == tokens
        assert (small.tau, base.tau) == (2304, 4608)
        assert small.ratio == pytest.approx(tokens / 2304) and small.long == (tokens > 2304) and not base.long
    (causal,) = cost.stages(config("vit_small_causal"), *COCO)
    assert causal.tau == 4608 and causal.ratio == pytest.approx(4000 / 4608) and not causal.long


def test_sides_that_are_no_multiples_of_the_stride_are_counted_as_they_are():
    assert [s.tokens for s in cost.stages(config("mambaout_tiny"), 100, 33)] == [25 * 9, 13 * 5, 7 * 3, 4 * 2]


def test_the_tasks_have_their_sizes(capsys):
    for task, (height, width) in (("coco", COCO), ("ade20k", ADE20K), ("imagenet", (32, 32))):
        got = as_json(capsys, f"task={task}", "backbone=mambaout_atto")
        assert (got["task"], got["height"], got["width"], got["images"]) == (task, height, width, 1)
        (row,) = got["networks"]
        assert row["with_head"]["params"] > row["backbone"]["params"]
        assert bool(row["with_head"]["activation_bytes"]) == (task == "imagenet")
    paper = as_json(capsys, "scale=paper", "backbone=mambaout_tiny")
    assert paper["height"] == paper["width"] == 224
    (row,) = paper["networks"]
    assert row["with_head"]["params"] == 26_545_096 and row["backbone"]["params"] == PARAMETERS["tiny"]
    assert as_json(capsys, "scale=paper", "size=288")["width"] == 288
    assert [as_json(capsys, "task=coco", "size=64x96")[k] for k in ("height", "width")] == [64, 96]


@pytest.mark.parametrize("task", ["imagenet", "coco", "ade20k"])
def test_what_is_recorded_of_a_run_is_in_the_table(capsys, task):
    asked = [f"task={task}", "scale=demo", "backbone=mambaout_atto_ssm"]
    run = cost.compose(asked)
    (row,) = as_json(capsys, *asked)["networks"]
    assert cost.of_run(run) == {"params": row["with_head"]["params"], "macs": row["with_head"]["macs"]["total"]}


def test_keys_of_the_backbone_can_be_changed_and_the_table_says_so(capsys):
    (plain,) = as_json(capsys, "backbone=mambaout_atto")["networks"]
    (treated,) = as_json(capsys, "backbone=mambaout_atto_ssm")["networks"]
    (changed,) = as_json(capsys, "backbone=mambaout_atto", "backbone.mixer=ssm")["networks"]
    assert changed["backbone"] == treated["backbone"] != plain["backbone"]
    assert cost.main(["backbone=mambaout_atto", "backbone.mixer=ssm", "seed=1"]) == 0
    assert "with backbone.mixer=ssm\n" in capsys.readouterr().out


def test_the_table_shows_every_arm_and_its_difference_to_the_first(capsys):
    assert cost.main(["task=coco", "backbone=mambaout_atto", "--arms", "size=32"]) == 0
    shown = capsys.readouterr().out
    arms = cost.arms_of("mambaout_atto")
    assert {"mambaout_atto", "mambaout_atto_ssm", "mambaout_atto_identity"} <= set(arms)
    rows = dict(re.findall(r"^  (\w+), backbone +(.*)$", shown, re.M))
    assert list(rows) == arms
    params = {n: sum(p.numel() for p in cost.on_meta(config(n), None, 32, 32)[0].parameters()) for n in arms}
    for name in arms[1:]:
        percent = 100 * (params[name] / params["mambaout_atto"] - 1)
        assert rows[name].startswith(f"{params[name]:,} ({percent:+.1f} %)")
    assert "%)" not in rows["mambaout_atto"]
    assert shown.count("Stages of ") == 1  # the arms agree in them
    for word in (
        "one image of 32 x 32 pixels",
        "mambaout_atto_ssm, Mask R-CNN",
        "L/(6 D)",
        "tau = 6 D",
        "fvcore",
        "float32",
    ):
        assert word in shown


def test_the_table_of_a_classifier_has_the_backbone_as_its_own_row(capsys):
    assert cost.main(["scale=paper", "backbone=mambaout_tiny"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"mambaout_tiny, with head +26,545,096 +4\.486 G", shown)
    assert re.search(r"mambaout_tiny, backbone +22,904,928 +4\.48\d G", shown)
    assert "not built" not in shown


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (999, "999"), (1234, "1.234 k"), (182.8e9, "182.8 G"), (5e15, "5,000 T")]
)
def test_amounts_have_four_digits(number, text):
    assert cost.amount(number, ("", "k", "M", "G", "T"), 1000) == text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["size=big"], "size=big: give height x width in pixels"),
        (["size=0"], "size=0: give"),
        (["size=-32x32"], "size=-32x32: give"),
        (["size=99999999x32"], "from 1 to 65536"),
        (["size="], "size=: give"),
        (["backbone=vit_small", "size=30x32"], "image of 30 x 32 pixels: ViT needs multiples of 16"),
        (["backbone=mambaout_tinny"], "no backbone 'mambaout_tinny'; did you mean mambaout_tiny"),
        (["backbone=mambaout_tiny,"], "backbone=mambaout_tiny,: an empty name"),
        (["task=cocoa"], "no task 'cocoa'; did you mean coco"),
        (["backbone.mixr=ssm"], "no key 'backbone.mixr'; did you mean backbone.mixer"),
        (["backbone.mixer=attention"], "choose one of conv, identity"),
        (["hight=32"], "no key 'hight'"),
    ],
)
def test_a_mistake_is_an_error_that_names_the_fix(arguments, message):
    for task in ("task=coco", "task=imagenet"):
        with pytest.raises(UserError, match=re.escape(message)) as error:
            cost.main(arguments if arguments[0].startswith("task=") else [task, *arguments])
        assert "\n" not in str(error.value)


def test_on_the_command_line_a_mistake_is_one_line(one_line_error):
    assert "size=0x32: give height x width" in one_line_error("hypotheses.cost", "task=coco", "size=0x32")


def test_help_shows_examples_that_compose_and_imports_no_torch():
    code = (
        "import runpy, sys\nsys.argv = ['cost', '--help']\n"
        "try:\n    runpy.run_module('hypotheses.cost', run_name='__main__')\n"
        "finally:\n    print({'torch', 'hydra', 'pandas'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout.strip().endswith("set()"), done.stdout + done.stderr
    examples = re.findall(r"^  python -m hypotheses\.cost (.*)$", done.stdout, re.M)
    assert len(examples) == 4
    for example in examples:
        asked = cost.parse(example.split())
        words = [w.split(",")[0] for w in asked.overrides if not w.startswith("size=")]
        assert cost.compose(words)["backbone"]["family"]


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_is_no_error():
    """As in `... | head -1`: the table is longer than what a pipe holds back."""
    command = f"{sys.executable} -m hypotheses.cost backbone=mambaout_atto --arms --json | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.stdout.startswith("{") and done.stderr == ""
