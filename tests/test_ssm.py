"""The selective scan against its readable reference, in values and gradients, and the layer around it."""

import pytest
import torch
from torch import Tensor

from hypotheses.backbones import initialise, ssm
from hypotheses.backbones.ssm import SSM, selective_scan, selective_scan_reference

SHAPES = [(2, 1, 1, 3, 1), (2, 37, 2, 5, 3), (1, 70, 1, 4, 16), (3, 64, 2, 6, 8), (1, 5, 4, 1, 2)]  # B, L, K, E, N
STEPS = {"usual": 0.05, "large": 20.0, "tiny": 1e-12}


def inputs(shape: tuple[int, ...], step: float = 0.05, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    B, L, K, E, N = shape
    g = torch.Generator().manual_seed(sum(shape))

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=g, dtype=torch.float64)

    dt = step * torch.nn.functional.softplus(normal(B, L, K, E))
    A = -torch.arange(1.0, N + 1).double() * (1 + 0.1 * normal(K, E, N)).abs()
    return [
        v.to(dtype).requires_grad_()
        for v in (normal(B, L, K, E), dt, A, normal(B, L, K, N), normal(B, L, K, N), normal(K, E))
    ]


def results(function, tensors: list[Tensor]) -> list[Tensor]:
    y = function(*tensors)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, tensors, weight)]


@pytest.mark.parametrize("chunk_bytes", [1, 2**21])
@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_fast_scan_equals_the_reference(shape, step, chunk_bytes, monkeypatch):
    monkeypatch.setattr(ssm, "CHUNK_BYTES", chunk_bytes)  # 1: the smallest chunk, so that L is several of them
    tensors = inputs(shape, step)
    for fast, slow in zip(results(selective_scan, tensors), results(selective_scan_reference, tensors), strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32_is_as_good_as_float32_can_be(shape):
    exact = results(selective_scan_reference, inputs(shape))
    single = results(selective_scan, inputs(shape, dtype=torch.float32))
    for fast, true in zip(single, exact, strict=True):
        assert fast.dtype == torch.float32
        assert (fast.double() - true).norm() <= 1e-6 * true.norm()


def test_gradcheck():
    assert torch.autograd.gradcheck(selective_scan, inputs((2, 9, 2, 3, 2)))


def test_the_same_input_gives_the_same_bits():
    tensors = inputs((3, 64, 2, 6, 8), dtype=torch.float32)
    for one, two in zip(results(selective_scan, tensors), results(selective_scan, tensors), strict=True):
        assert torch.equal(one, two)


def test_the_reference_is_the_recurrence_written_out():
    x, dt, A, B, C, D = (v.detach() for v in inputs((1, 3, 1, 1, 2)))
    h, expected = [0.0, 0.0], []
    for t in range(3):
        step = dt[0, t, 0, 0].item()
        for n in range(2):
            decay = torch.exp(torch.tensor(step * A[0, 0, n].item(), dtype=torch.float64)).item()
            h[n] = decay * h[n] + step * B[0, t, 0, n].item() * x[0, t, 0, 0].item()
        y = sum(C[0, t, 0, n].item() * h[n] for n in range(2)) + D[0, 0].item() * x[0, t, 0, 0].item()
        expected.append(y)
    assert selective_scan_reference(x, dt, A, B, C, D)[0, :, 0, 0].tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("bidirectional", "directions"), [(True, 2), (False, 1)])
def test_parameters_and_initial_values(bidirectional, directions):
    E, N, R = 48, 16, 3
    layer = SSM(E, N, bidirectional)
    initialise(layer, 0, "published")
    assert sum(p.numel() for p in layer.parameters()) == directions * E * (2 * R + 3 * N + 2)
    A, steps = -torch.exp(layer.A_log), torch.nn.functional.softplus(layer.dt_bias)
    assert torch.allclose(A, -torch.arange(1.0, N + 1).expand_as(A))
    assert torch.equal(layer.D, torch.ones_like(layer.D))
    assert steps.min() >= 0.99e-3 and steps.max() <= 1.01e-1 and steps.std() > 0.01
    if bidirectional:
        assert not torch.equal(layer.dt_bias[0], layer.dt_bias[1])


def test_the_two_directions_are_averaged_and_the_second_runs_backwards():
    layer = SSM(4, 3, bidirectional=True).double()
    initialise(layer, 0, "published")
    with torch.no_grad():
        for p in layer.parameters():  # the same parameters both ways
            p[1] = p[0]
        z = torch.randn(2, 3, 5, 4, dtype=torch.float64)
        turned = z.flatten(1, 2).flip(1).reshape(z.shape)
        assert torch.allclose(layer(turned), layer(z).flatten(1, 2).flip(1).reshape(z.shape))


def test_the_scan_stays_in_float32_under_autocast():
    layer = SSM(8, 4, bidirectional=True)
    initialise(layer, 0, "published")
    z = torch.randn(2, 4, 4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = layer(z.bfloat16())
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, layer(z.bfloat16().float()))
