"""The fused gate against the plain one: values and gradients, float32 and bfloat16."""

import copy

import pytest
import torch
from torch import nn

from hypotheses import backbones
from hypotheses.backbones import gate, kernels
from hypotheses.config import compose

# B, h, w, hidden, channels of the convolution: the published 8/3; odd sizes; maps smaller than the kernel; long rows
SHAPES = [
    (2, 8, 8, 128, 48),
    (1, 7, 5, 341, 128),
    (3, 14, 14, 20, 9),
    (1, 1, 1, 8, 3),
    (2, 2, 30, 40, 16),
    (9, 3, 9, 24, 24),
]

pytestmark = pytest.mark.skipif(kernels.library("gate") is None, reason="no compiler here")


def results(function, z: torch.Tensor, other: nn.Module | torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    """The output, and the gradients of z and of the convolution's parameters or of the mixed channels."""
    z = z.to(dtype).requires_grad_()
    if isinstance(other, nn.Module):
        other = copy.deepcopy(other).to(torch.float64 if dtype == torch.float64 else torch.float32)
        parameters = list(other.parameters())
    else:
        other = other.to(dtype).requires_grad_()
        parameters = [other]
    out = function(z, other)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    return [out.detach(), *torch.autograd.grad(out, [z, *parameters], weight.to(out.dtype))]


@pytest.mark.parametrize("convolved", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_fused_gate_equals_the_plain_one(shape, convolved):
    torch.manual_seed(0)
    B, h, w, hidden, channels = shape
    z = 2 * torch.randn(B, h, w, 2 * hidden)
    other = (
        nn.Conv2d(channels, channels, 7, padding=3, groups=channels) if convolved else torch.randn(B, h, w, channels)
    )
    plain, fast = (gate.gated_conv_plain, gate.gated_conv) if convolved else (gate.gated_plain, gate.gated)
    true = results(plain, z, other, torch.float64)
    for found, b in zip(results(fast, z, other, torch.float32), true, strict=True):
        assert found.dtype == torch.float32
        assert (found.double() - b).norm() <= 1e-6 * b.norm()
    # bfloat16 keeps eight bits, so half of 2^-8 is what rounding the result alone costs
    coarse = results(plain, z.bfloat16().float(), other if convolved else other.bfloat16().float(), torch.float64)
    for found, b in zip(results(fast, z, other, torch.bfloat16), coarse, strict=True):
        assert (found.double() - b).norm() <= 5e-3 * b.norm()


def permuted(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape[::-1]).permute(*reversed(range(len(shape))))


@pytest.mark.parametrize("gradient", [lambda s: torch.ones(()).expand(s), permuted], ids=["expanded", "permuted"])
@pytest.mark.parametrize("convolved", [True, False])
def test_a_gradient_of_any_layout(convolved, gradient):
    """As a sum or a mean makes them, which are not contiguous."""
    z = torch.randn(3, 9, 10, 80)
    other = nn.Conv2d(24, 24, 7, padding=3, groups=24) if convolved else torch.randn(3, 9, 10, 24)
    weight = gradient((3, 9, 10, 40))
    found = []
    for function in (gate.gated_conv_plain, gate.gated_conv) if convolved else (gate.gated_plain, gate.gated):
        leaf = z.clone().requires_grad_()
        found.append(torch.autograd.grad(function(leaf, other), leaf, weight)[0])
    assert (found[0] - found[1]).norm() <= 1e-6 * found[0].norm()


@pytest.mark.parametrize("gradient", [lambda s: torch.ones(()).expand(s), permuted], ids=["expanded", "permuted"])
def test_the_convolution_before_an_ssm_adds_its_gradient(gradient):
    z, conv = torch.randn(2, 5, 6, 80), nn.Conv2d(24, 24, 7, padding=3, groups=24)
    weights = [gradient((2, 5, 6, 80)), gradient((2, 5, 6, 24))]
    found = []
    for function in (gate.conv_silu_plain, gate.conv_silu):
        leaf = z.clone().requires_grad_()
        found.append(torch.autograd.grad(function(leaf, conv), leaf, weights)[0])
    assert (found[0] - found[1]).norm() <= 1e-6 * found[0].norm()


def test_what_the_kernel_cannot_do_takes_the_plain_way():
    z = torch.randn(1, 8, 8, 16)
    for conv in (
        nn.Conv2d(3, 3, (7, 1), padding=(3, 0), groups=3),
        nn.Conv2d(3, 3, 7, padding=6, dilation=2, groups=3),
        nn.Conv2d(3, 3, 7, padding=3, groups=3, bias=False),
        nn.Conv2d(3, 3, 7, padding=3),
        nn.Conv2d(3, 3, 7, padding=3, groups=3, padding_mode="reflect"),
    ):
        assert torch.equal(gate.gated_conv(z, conv), gate.gated_conv_plain(z, conv))
    with pytest.raises(ValueError, match="does not belong to z"):
        gate.gated(z, torch.randn(1, 2, 2, 3))


@pytest.mark.parametrize("mixer", ["conv", "identity", "act", "ssm", "sham"])
@pytest.mark.parametrize("change", [lambda m: m.bfloat16(), lambda m: m.double()], ids=["bfloat16", "float64"])
def test_every_arm_takes_every_precision_and_no_images(mixer, change):
    model = change(
        backbones.build_classifier(compose(["backbone=mambaout_atto"])["backbone"] | {"mixer": mixer}, 10, 0)
    )
    dtype = next(model.parameters()).dtype
    logits = model(torch.randn(2, 3, 32, 32, dtype=dtype))
    assert logits.dtype == dtype and logits.isfinite().all()
    assert model(torch.empty(0, 3, 32, 32, dtype=dtype)).shape == (0, 10)
    logits.sum().backward()


@pytest.mark.parametrize("mixer", ["conv", "ssm"])
def test_no_images_are_no_error(mixer):
    model = backbones.build_classifier(compose(["backbone=mambaout_atto"])["backbone"] | {"mixer": mixer}, 10, 0)
    model(torch.empty(0, 3, 32, 32)).sum().backward()


def test_gelu_is_exact_where_it_vanishes():
    """Its tails, which a formula with 1 - erf loses, and NaN, which must not be lost."""
    x = torch.linspace(-12, 12, 481)
    zero = torch.zeros_like(x)
    z = torch.stack((x, zero, torch.ones_like(x), zero), -1).view(
        1, 1, -1, 4
    )  # gate, rest and raw: 2, 1 and 1 channels
    out = gate.gated(z, torch.zeros(1, 1, len(x), 1))[0, 0, :, 0]
    true = nn.functional.gelu(x.double())
    assert ((out - true).abs() <= 2e-7 * (1 + x.abs())).all()
    tail = (x < -2) & (x >= -5)
    assert ((out[tail] - true[tail]) / true[tail]).abs().max() <= 2e-3  # there 1 - erf has no right digit in float32
    z[..., 0] = float("nan")
    for dtype in (torch.float32, torch.bfloat16):
        assert gate.gated(z.to(dtype), torch.zeros(1, 1, len(x), 1))[0, 0, :, 0].isnan().all()


@pytest.mark.parametrize("mixer", ["conv", "ssm"])
def test_the_same_input_gives_the_same_bits(mixer):
    model = backbones.build_classifier(compose(["backbone=mambaout_atto"])["backbone"] | {"mixer": mixer}, 10, 0)
    image = torch.randn(5, 3, 32, 32)

    def once():
        model.zero_grad()
        model(image).square().sum().backward()
        return [p.grad.clone() for p in model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(once(), once(), strict=True))


@pytest.mark.parametrize("mixer", ["conv", "identity", "act", "ssm", "ssm_cross", "sham"])
def test_a_network_with_kernels_equals_one_without(mixer, monkeypatch):
    model = backbones.build_classifier(compose(["backbone=mambaout_atto"])["backbone"] | {"mixer": mixer}, 10, 0)
    image = torch.randn(3, 3, 32, 40)

    def run():
        model.zero_grad()
        logits = model(image)
        nn.functional.cross_entropy(logits, torch.arange(3)).backward()
        return [logits.detach(), *(p.grad.clone() for p in model.parameters())]

    fast = run()
    monkeypatch.setattr(kernels, "library", lambda name: None)
    for a, b in zip(fast, run(), strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()


def test_other_kernel_sizes_and_types_take_the_plain_way():
    z = torch.randn(1, 4, 4, 16)
    conv = nn.Conv2d(3, 3, 5, padding=2, groups=3)
    assert torch.equal(gate.gated_conv(z, conv), gate.gated_conv_plain(z, conv))
    assert not gate.fused(z.double()) and not gate.fused(z.half()) and gate.fused(z)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("height", "width", "size"), [(16, 16, 25), (8, 8, 25), (5, 9, 13), (1, 3, 9), (13, 13, 13)])
def test_a_kernel_that_reaches_over_the_map_is_a_matrix(height, width, size, bias):
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 6, size, padding=size // 2, groups=6, bias=bias).double()
    z = torch.randn(3, height, width, 20, dtype=torch.float64)
    assert gate.reaches_over(z[..., -6:], conv)
    inputs = [z.clone().requires_grad_() for _ in range(2)]
    by_matrix = gate.convolve(inputs[0], conv)
    made = torch.autograd.grad(by_matrix.square().sum(), [inputs[0], *conv.parameters()])
    plain = conv(inputs[1][..., -6:].permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    wanted = torch.autograd.grad(plain.square().sum(), [inputs[1], *conv.parameters()])
    for ours, theirs in zip((by_matrix, *made), (plain, *wanted), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_no_other_convolution_is_made_a_matrix():
    def same(size: int, **changes) -> nn.Conv2d:
        return nn.Conv2d(6, 6, size, **{"padding": size // 2, "groups": 6} | changes)

    raw = torch.zeros(2, 8, 8, 6)
    assert gate.reaches_over(raw, same(9)) and not gate.reaches_over(raw.repeat(1, 2, 1, 1), same(9))
    assert not gate.reaches_over(raw[:, :5, :5], same(7))  # the usual one
    for conv in (same(9, groups=1), same(9, dilation=2), same(9, padding=3), same(9, padding_mode="circular")):
        assert not gate.reaches_over(raw, conv)
    assert not gate.reaches_over(raw.to("meta"), same(9))  # where costs are counted
    assert not gate.reaches_over(raw[:0], same(9))


def test_a_large_kernel_keeps_the_type_of_autocast():
    conv = nn.Conv2d(6, 6, 9, padding=4, groups=6)
    with torch.autocast("cpu", torch.bfloat16):
        assert gate.convolve(torch.zeros(2, 8, 8, 20), conv).dtype == torch.bfloat16
