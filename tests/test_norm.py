"""The fused LayerNorm against PyTorch's own: values and gradients."""

import pytest
import torch
from torch import nn

from hypotheses.backbones import kernels
from hypotheses.backbones.norm import Norm

SHAPES = [(2, 5, 5, 48), (3, 7, 20), (1, 1, 3), (2, 9, 341), (7, 13, 13, 96), (4, 768)]


def results(function, layer: nn.Module, x: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    x = x.to(dtype).requires_grad_()
    y = function(layer, x)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], weight.to(y.dtype))]


def made(layer: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def close(found: list[torch.Tensor], true: list[torch.Tensor], least: float) -> None:
    for a, b in zip(found, true, strict=True):
        assert (a.double() - b).norm() <= least * b.norm() + 1e-30


@pytest.mark.skipif(kernels.library("norm") is None, reason="no compiler here")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_fused_norm_equals_pytorchs(shape):
    norm = made(Norm(shape[-1]))
    x = 3 * torch.randn(shape) + 10  # a mean far from 0, which a one-pass variance would not survive
    exact = made(nn.LayerNorm(shape[-1], eps=1e-6).double())
    exact.load_state_dict(norm.state_dict())
    true = results(nn.LayerNorm.forward, exact, x, torch.float64)
    close(results(Norm.forward, norm, x, torch.float32), true, 1e-6)
    true = results(nn.LayerNorm.forward, exact, x.bfloat16(), torch.float64)
    close(results(Norm.forward, norm, x, torch.bfloat16), true, 1e-2)


@pytest.mark.skipif(kernels.library("norm") is None, reason="no compiler here")
def test_before_a_linear_layer_autocast_is_anticipated():
    x = torch.randn(2, 3, 3, 24)
    plain, feeding = made(Norm(24)), made(Norm(24, feeds_linear=True))
    with torch.autocast("cpu", torch.bfloat16):
        assert plain(x).dtype == torch.float32 and feeding(x).dtype == torch.bfloat16
        assert torch.equal(plain(x).bfloat16(), feeding(x))
    assert feeding(x).dtype == torch.float32
    y = results(lambda norm, x: norm(x), feeding, x, torch.float32)
    assert torch.equal(y[0], plain(x))


def test_a_map_of_other_channels_is_refused():
    with pytest.raises(RuntimeError, match="normalized_shape"):
        Norm(8)(torch.randn(2, 3, 9))


def test_a_value_that_is_not_a_number_stays_one():
    x = torch.randn(2, 24)
    x[1, 3] = float("nan")
    y = Norm(24)(x)
    assert y[1].isnan().all() and not y[0].isnan().any()
