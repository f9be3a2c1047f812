"""Any backbone gives detection and segmentation four maps."""

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from conftest import BACKBONES
from hypotheses import backbones
from hypotheses.backbones.dense import STRIDES, Dense, Pyramid
from hypotheses.config import compose


def config(name: str) -> dict:
    return compose([f"backbone={name}"])["backbone"]


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_has_four_maps(name):
    with torch.device("meta"):
        network = Dense(backbones.build(config(name)))
        maps = network(torch.empty(2, 3, 96, 160))
    assert [tuple(x.shape) for x in maps] == [
        (2, dim, 96 // stride, 160 // stride) for dim, stride in zip(network.dims, STRIDES, strict=True)
    ]
    assert len(network.norms) == 4 and all(isinstance(norm, nn.LayerNorm) for norm in network.norms)


@pytest.mark.parametrize("name", ["mambaout_femto", "mambaout_atto_ssm", "vit_atto_causal"])
def test_every_output_is_normalised(name):
    network = Dense(backbones.build(config(name))).eval()
    backbones.initialise(network, 0, "fan_in")
    for x in network(torch.randn(1, 3, 64, 64)):
        assert x.mean(1).abs().max() < 1e-5
        assert (x.var(1, unbiased=False) - 1).abs().max() < 0.1


def test_the_maps_of_four_stages_are_the_networks_own():
    network = backbones.build(config("mambaout_femto"))
    backbones.initialise(network, 0, "published")
    x = torch.randn(1, 3, 64, 64)
    for own, dense in zip(network(x), Dense(network)(x), strict=True):
        expected = nn.functional.layer_norm(own.permute(0, 2, 3, 1), own.shape[1:2], eps=1e-6).permute(0, 3, 1, 2)
        assert torch.allclose(dense, expected, atol=1e-5)


@pytest.mark.parametrize(("dim", "stride", "dims"), [(48, 4, [48] * 4), (192, 16, [48, 96, 192, 192])])
def test_a_pyramid_keeps_what_lies_where(dim, stride, dims):
    """A value in one place of the map changes that place of every scale, and no other."""
    torch.manual_seed(0)
    pyramid = Pyramid(dim, stride)
    assert pyramid.dims == dims
    x = torch.zeros(1, dim, 16, 16)
    touched = x.clone()
    touched[:, :, 8:, :8] = torch.randn(dim, 1, 1)
    for before, after, target in zip(pyramid(x), pyramid(touched), STRIDES, strict=True):
        changed = (before != after).any(1)[0]
        half = 16 * stride // target // 2
        assert changed.shape == (2 * half, 2 * half)
        assert changed[half:, :half].all() and not changed[:half].any() and not changed[:, half:].any()


def test_all_values_come_from_the_seed_and_arms_share_them():
    networks = []
    for name, global_seed in (("vit_atto", 1), ("vit_atto_causal", 2), ("vit_atto", 3)):
        torch.manual_seed(global_seed)
        network = Dense(backbones.build(config(name)))
        backbones.initialise(network, 5, "published")
        networks.append(network.state_dict())
    for other in networks[1:]:
        assert other.keys() == networks[0].keys()
        assert all(torch.equal(other[key], networks[0][key]) for key in other)


class GeneratorsOfTheirDevice(TorchFunctionMode):
    """Refuses draws by a generator for a tensor of another device, as CUDA does and the meta device does not."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if (generator := kwargs.get("generator")) is not None:
            drawn = [v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)]
            assert all(v.device.type == generator.device.type for v in drawn)
        return function(*args, **kwargs)


@pytest.mark.parametrize("name", BACKBONES)
def test_initial_values_are_drawn_on_the_cpu_wherever_the_network_is(name):
    with torch.device("meta"):
        network = Dense(backbones.build(config(name)))
    with GeneratorsOfTheirDevice():
        backbones.initialise(network, 0, "published")


def test_transposed_convolutions_are_initialised_from_the_seed():
    found = []
    for seed in (0, 0, 1):
        pyramid = Pyramid(64, 16)
        backbones.initialise(pyramid, seed, "fan_in")
        found.append(pyramid.state_dict())
    assert all(torch.equal(found[0][k], found[1][k]) for k in found[0])
    first = "scales.0.0.weight"
    assert not torch.equal(found[0][first], found[2][first])
    assert found[0][first].std().item() == pytest.approx(64**-0.5, rel=0.15)


def test_positions_of_a_vit_follow_the_size():
    network = Dense(backbones.build(config("vit_tiny"))).eval()
    with torch.no_grad():
        for size in ((96, 160), (224, 224), (160, 96)):
            assert network(torch.randn(1, 3, *size))[2].shape[-2:] == (size[0] // 16, size[1] // 16)


def test_other_maps_are_refused():
    network = backbones.build({**config("mambaout_femto"), "depths": [1, 1], "dims": [16, 32]})
    with pytest.raises(ValueError, match=r"maps at strides \[4, 8\]: detection and segmentation need \[4, 8, 16, 32\]"):
        Dense(network)
