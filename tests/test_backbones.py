"""The networks: published sizes, shapes, what may see what, and that the arms of a pair share all but the switch."""

import pytest
import torch
from torch import nn

from conftest import BACKBONES
from hypotheses import backbones, cost
from hypotheses.backbones import kernels
from hypotheses.backbones.ssm import SSM
from hypotheses.config import compose
from hypotheses.errors import UserError

# official model files: exact parameters, GMACs at 224 pixels as fvcore counts them
PUBLISHED = {
    "femto": (7_304_536, 1.156),
    "kobe": (9_141_208, 1.515),
    "tiny": (26_545_096, 4.486),
    "small": (48_488_072, 8.960),
    "base": (84_813_092, 15.826),
}
SMALL = [n for n in BACKBONES if "atto" in n]
CONTROLS = {n: n.rsplit("_", 1)[0] for n in BACKBONES if n.startswith("vit") and n.endswith(("_causal", "_identity"))}
CONTROLS |= {n: "_".join(n.split("_")[:2]) for n in BACKBONES if n.startswith("mambaout") and n.count("_") > 1}


def config(name: str) -> dict:
    return compose([f"backbone={name}"])["backbone"]


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_parameters_and_macs(size):
    params, gmacs = PUBLISHED[size]
    counted = cost.count(config(f"mambaout_{size}"), num_classes=1000, height=224, width=224)
    assert counted["params"] == params
    assert counted["macs"] == pytest.approx(1e9 * gmacs, abs=0.0005e9)


def test_the_scan_is_counted():
    plain, treated = (cost.count(config(f"mambaout_atto{s}"), 10, 32, 32)["macs"] for s in ("", "_ssm"))
    E, N, R, tokens, directions, blocks = 48, 8, 3, 64, 2, 4
    scan = tokens * E * (9 * N + 1)
    projections = tokens * (E * (R + 2 * N) + R * E)
    assert treated - plain == blocks * directions * (scan + projections)


@pytest.mark.parametrize("name", BACKBONES)
def test_maps_keep_the_contract(name):
    with torch.device("meta"):
        network = backbones.build(config(name))
        maps = network(torch.empty(2, 3, 96, 64))
    assert len(maps) == len(network.dims) == len(network.strides)
    for x, dim, stride in zip(maps, network.dims, network.strides, strict=True):
        assert x.shape == (2, dim, 96 // stride, 64 // stride)


@pytest.mark.parametrize("patch", [1, 2, 4, 8, 16])
def test_a_patch_of_any_size_leaves_no_pixel_out(patch):
    network = backbones.build(config("mambaout_atto") | {"patch": patch, "mixer": "identity"})
    image = torch.randn(1, 3, 32, 32, requires_grad=True)
    (x,) = network(image)
    assert x.shape == (1, 48, 32 // patch, 32 // patch) and network.strides == [patch]
    x.square().sum().backward()
    assert image.grad is not None and image.grad.abs().amin() > 0


def reach(layer: nn.Module, shape: tuple[int, ...]) -> torch.Tensor:
    """(L, L) booleans of a layer on maps of `shape`, tokens first and channels last: does token i change when j does?"""
    x = torch.randn(shape, dtype=torch.float64).flatten(0, -2)  # (L, C)
    tokens = len(x)
    # copy j has token j changed, and not by the same in all channels, which a LayerNorm would take away
    changed = x + torch.eye(tokens).double().unsqueeze(-1) * torch.randn(x.shape[-1], dtype=torch.float64)
    with torch.no_grad():
        out = layer(torch.cat((x.unsqueeze(0), changed)).reshape(tokens + 1, *shape)).reshape(tokens + 1, tokens, -1)
    return ((out[1:] - out[0]).abs() > 1e-13).any(-1).T


def blocks(name: str) -> nn.Module:
    """The blocks of a small network, without its stem, whose convolutions look across a token's border."""
    network = backbones.build_classifier(config(name), 10, 0).backbone.double().eval()
    return network.blocks if name.startswith("vit") else network.stages[0]


FULL = torch.ones(16, 16, dtype=torch.bool)


@pytest.mark.parametrize("name", [n for n in SMALL if n.startswith("vit")])
def test_attention_sees_what_its_mask_leaves(name):
    seen = {"causal": FULL.tril(), "identity": FULL & torch.eye(16, dtype=torch.bool)}.get(name.rsplit("_", 1)[1], FULL)
    assert torch.equal(reach(blocks(name), (16, 48)), seen)


@pytest.mark.parametrize(("directions", "seen"), [(1, FULL.tril()), (2, FULL), (4, FULL)])
def test_one_direction_is_causal_and_more_are_not(directions, seen):
    layer = SSM(8, 4, directions).double()
    backbones.initialise(layer, 0, "published")
    assert torch.equal(reach(layer, (4, 4, 8)), seen)


def test_the_sham_sees_the_token_itself_alone():
    layer = SSM(8, 4, 4, memory=False).double()
    backbones.initialise(layer, 0, "published")
    assert torch.equal(reach(layer, (4, 4, 8)), torch.eye(16, dtype=torch.bool))


def test_the_mixers_reach_what_they_should():
    assert torch.equal(reach(blocks("mambaout_atto_identity"), (4, 4, 48)), FULL & torch.eye(16, dtype=torch.bool))
    assert torch.equal(reach(blocks("mambaout_atto"), (4, 4, 48)), FULL)  # 7 x 7 convolutions on 4 x 4 tokens
    assert torch.equal(reach(blocks("mambaout_atto_ssm"), (4, 4, 48)), FULL)
    # on a longer row the convolutions of four blocks end after 12 tokens, the scan does not
    far = torch.zeros(2, 30)
    for row, name in enumerate(("mambaout_atto", "mambaout_atto_ssm")):
        far[row] = reach(blocks(name), (1, 30, 48))[:, 0]
    assert far[0, :13].all() and not far[0, 13:].any() and far[1].all()


def shapes(backbone: dict) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {name: v.shape for name, v in backbones.build(backbone).state_dict().items()}


@pytest.mark.parametrize("arm", CONTROLS)
def test_an_arm_differs_from_its_control_by_its_key_alone(arm):
    """The config by that key (two where a key says how far another goes), and the network by the layers of that key."""
    ours, theirs = config(arm), config(CONTROLS[arm])
    changed = {key for key in ours if ours[key] != theirs[key]} - {"name"}
    assert ours.keys() == theirs.keys()
    assert changed in ONE_KEY and (changed != {"mixer", "mixer_stages"} or "stage" in arm)
    a, b = shapes(ours), shapes(theirs)
    added, removed = a.keys() - b.keys(), b.keys() - a.keys()
    resized = {k for k in a.keys() & b.keys() if a[k] != b[k]}
    mixer = ours.get("mixer", "conv")
    assert all(".ssm." in k for k in added) and bool(added) == (mixer.startswith(("ssm", "sham")))
    assert all(".conv." in k and k.startswith("stages") for k in removed) and bool(removed) == (mixer == "identity")
    part = {"kernel_size": ".conv.weight", "expansion": ".fc"}.get(next(iter(changed)), "none")
    assert all(part in k for k in resized) and bool(resized) == (part != "none")


ONE_KEY = [
    {"mixer"},
    {"kernel_size"},
    {"expansion"},
    {"causal"},
    {"attention"},
    {"mixer", "d_state"},
    {"mixer", "mixer_stages"},
]


@pytest.mark.parametrize(
    "arm", [a for a in CONTROLS if a in SMALL or a in ("mambaout_femto_ssm", "mambaout_femto_act")]
)
def test_an_arm_and_its_control_share_the_initial_weights_of_shared_layers(arm):
    theirs, ours = (backbones.build_classifier(config(n), 10, seed=5).state_dict() for n in (arm, CONTROLS[arm]))
    shared = {k for k in theirs.keys() & ours.keys() if theirs[k].shape == ours[k].shape}
    assert len(shared) > 20
    assert all(torch.equal(theirs[k], ours[k]) for k in shared)
    other_seed = backbones.build_classifier(config(CONTROLS[arm]), 10, seed=6).state_dict()
    assert not all(torch.equal(ours[k], other_seed[k]) for k in ours)


@pytest.mark.parametrize("arm", [a for a in CONTROLS if a in SMALL])
def test_an_arm_computes_something_else_than_its_control(arm):
    image = torch.randn(2, 3, 48, 32)
    a, b = (backbones.build_classifier(config(n), 10, seed=5).eval()(image) for n in (arm, CONTROLS[arm]))
    assert not torch.allclose(a, b, rtol=1e-3)


@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_one_stage_can_carry_the_ssm(stage):
    names = [k for k in shapes(config(f"mambaout_tiny_ssm_stage{stage}")) if ".ssm." in k]
    assert names and all(k.startswith(f"stages.{stage - 1}.") for k in names)


@pytest.mark.parametrize("twin", [n for n in BACKBONES if n.endswith("_sham")])
def test_a_sham_costs_what_its_twin_costs(twin):
    size, real = (config(n) for n in (twin, twin.replace("_sham", "_ssm")))
    assert shapes(size) == shapes(real)
    for height, width in ((224, 224), (96, 160)):
        assert cost.count(size, 10, height, width) == cost.count(real, 10, height, width)


@pytest.mark.parametrize("name", [n for n in BACKBONES if "_matched_" in n])
def test_a_matched_control_is_of_its_arms_size(name):
    size, key = name.split("_matched_")
    pixels = 32 if "atto" in name else 224
    ours, arm = (cost.count(config(n), 1000, pixels, pixels) for n in (name, f"{size}_ssm"))
    assert ours[key] == pytest.approx(arm[key], rel=0.002)


def test_the_sham_network_sees_with_its_convolutions_only():
    """On a long row four blocks of 7 x 7 convolutions end after 12 tokens, with the sham as without any SSM."""
    far = reach(blocks("mambaout_atto_sham"), (1, 30, 48))[:, 0]
    assert far[:13].all() and not far[13:].any()


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_gets_a_gradient(name):
    model = backbones.build_classifier(config(name), 10, 0)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert not dead


def test_published_initial_values():
    model = backbones.build_classifier(config("mambaout_femto"), 1000, 0)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
            assert module.bias is not None and not module.bias.any()


def test_drop_path_rises_linearly_over_the_blocks_and_acts():
    network = backbones.build(config("mambaout_femto"), drop_path=0.2)
    rates = [m.p for m in network.modules() if type(m).__name__ == "StochasticDepth"]
    assert rates == pytest.approx([0.2 * i / 17 for i in range(18)])
    x = torch.randn(8, 3, 32, 32)
    a, b = (network.train()(x)[-1] for _ in range(2))
    assert not torch.equal(a, b)


def test_positions_are_interpolated_to_other_sizes():
    model = backbones.build_classifier(config("vit_tiny"), 10, 0).backbone
    assert model.positions(14, 14) is model.pos_embed
    assert model.positions(7, 20).shape == (1, 192, 7, 20)
    with pytest.raises(ValueError, match="multiples of 16"):
        model(torch.zeros(1, 3, 30, 32))


def test_the_kernels_of_an_arm_are_named(monkeypatch):
    """What it is computed with, and nothing that it does not have."""
    used = {
        arm: backbones.kernels_used(config(f"mambaout_atto{arm}"), "cpu") for arm in ("", "_ssm", "_k13", "_identity")
    }
    assert "scan" not in used[""] and used["_ssm"]["scan"] == ("cpp" if kernels.library("scan") else "chunked")
    assert used["_k13"]["gate"] == "plain" and used[""]["gate"] == ("cpp" if kernels.library("gate") else "plain")
    assert used[""] == {k: v for k, v in used["_ssm"].items() if k != "scan"} == used["_identity"]
    assert backbones.kernels_used(config("vit_atto"), "cpu") == {"linear": used[""]["linear"]}
    for native, name in ((True, "oneDNN"), (False, "by float32")):
        monkeypatch.setattr(backbones, "bfloat16_products", lambda native=native: native)
        assert backbones.kernels_used(config("vit_atto"), "cpu", "bf16-mixed")["bfloat16"] == name


def test_norms_biases_and_the_states_of_the_ssm_are_not_decayed():
    model = backbones.build_classifier(config("mambaout_atto_ssm"), 10, 0)
    decayed, free = backbones.decay_groups(model, 0.05)
    names = {id(p): n for n, p in model.named_parameters()}
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.05, 0.0)
    assert len(decayed["params"]) + len(free["params"]) == len(names)
    for p in decayed["params"]:
        assert names[id(p)].endswith((".weight", "x_proj", "dt_proj")) and p.ndim > 1
    assert {names[id(p)].split(".")[-1] for p in free["params"]} == {"weight", "bias", "A_log", "D", "dt_bias"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixer": "attention"}, "choose one of conv, identity"),
        ({"mixr": "ssm"}, "no such key; did you mean mixer"),
        ({"family": "resnet"}, "choose one of mambaout, vit"),
        ({"dims": [48, 96]}, "give one each"),
        ({"patch": 3}, "choose one of 1, 2, 4, 8, 16"),
        ({"init": "zeros"}, "choose one of published, fan_in"),
        ({"kernel_size": 6}, "give an odd number"),
        ({"mixer_stages": [2]}, r"give some of \[1\], or null"),
        ({"mixer_stages": []}, r"give some of \[1\], or null"),
        ({"d_state": 0}, "give whole numbers from 1"),
        ({"depths": [-1]}, "give whole numbers from 1"),
        ({"dims": [0]}, "give whole numbers from 1"),
        ({"d_state": "abc"}, "give whole numbers from 1"),
        ({"kernel_size": 7.5}, "give whole numbers from 1"),
        ({"expansion": 0.5}, "the published one is 8/3"),
    ],
)
def test_a_wrong_key_is_an_error_that_names_the_fix(change, message):
    with pytest.raises(UserError, match=message):
        backbones.build_classifier(config("mambaout_atto") | change, 10, 0)
