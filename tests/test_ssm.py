"""The SSM as a layer: parameters, initial values, directions, precision, and that its sham has no memory."""

import pytest
import torch
from torch import nn

from hypotheses.backbones import initialise
from hypotheses.backbones.scan import selective_scan_reference
from hypotheses.backbones.ssm import SSM, scan_orders

DIRECTIONS = (1, 2, 4)


def made(channels: int, d_state: int, directions: int, memory: bool = True) -> SSM:
    layer = SSM(channels, d_state, directions, memory)
    initialise(layer, 0, "published")
    return layer


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("directions", DIRECTIONS)
def test_parameters_and_initial_values(directions, memory):
    E, N, R = 48, 16, 3
    layer = made(E, N, directions, memory)
    assert sum(p.numel() for p in layer.parameters()) == directions * E * (2 * R + 3 * N + 2)
    A, steps = -torch.exp(layer.A_log), nn.functional.softplus(layer.dt_bias)
    assert torch.allclose(A, -torch.arange(1.0, N + 1).expand_as(A))
    assert torch.equal(layer.D, torch.ones_like(layer.D))
    assert steps.min() >= 0.99e-3 and steps.max() <= 1.01e-1 and steps.std() > 0.01
    assert all(not torch.equal(layer.dt_bias[0], other) for other in layer.dt_bias[1:])


def test_the_orders_of_the_directions():
    orders = scan_orders(4, 2, 3, torch.device("cpu")).tolist()
    assert orders == [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [0, 3, 1, 4, 2, 5], [5, 2, 4, 1, 3, 0]]


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("directions", DIRECTIONS)
def test_the_layer_is_its_docstring_written_out(directions, memory):
    layer = made(6, 3, directions, memory).double()
    z = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    tokens = z.flatten(1, 2)
    y = torch.zeros_like(tokens)
    orders = scan_orders(directions, 3, 4, z.device).long()
    for k in range(directions):
        x = tokens[:, orders[k]]
        delta, B, C = (x @ layer.x_proj[k]).split((layer.rank, 3, 3), dim=-1)
        dt = nn.functional.softplus(delta @ layer.dt_proj[k] + layer.dt_bias[k])
        A = -torch.exp(layer.A_log[k : k + 1])
        scanned = selective_scan_reference(
            x, dt.unsqueeze(2), A, B.unsqueeze(2), C.unsqueeze(2), layer.D[k : k + 1], memory=memory
        )
        y[:, orders[k]] += scanned / directions
    torch.testing.assert_close(layer(z), y.view(z.shape))


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_the_sham_has_no_memory(directions):
    """Every token's output is the same whatever the other tokens are, to the last bit, and so it is alone in its map."""
    layer = made(8, 4, directions, memory=False)
    z = torch.randn(2, 3, 5, 8)
    others = torch.randn(2, 3, 5, 8)
    with torch.no_grad():
        whole = layer(z)
        for i in range(3):
            for j in range(5):
                mixed = others.clone()
                mixed[:, i, j] = z[:, i, j]
                assert torch.equal(layer(mixed)[:, i, j], whole[:, i, j])
                alone = layer(z[:, i : i + 1, j : j + 1])
                torch.testing.assert_close(
                    alone[:, 0, 0], whole[:, i, j]
                )  # other shapes of the products round otherwise


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_the_sham_has_its_twins_parameters_and_costs_and_uses_them_all(directions):
    twin, sham = (made(8, 4, directions, memory) for memory in (True, False))
    assert {n: p.shape for n, p in twin.named_parameters()} == {n: p.shape for n, p in sham.named_parameters()}
    assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), sham.parameters(), strict=True))
    assert twin.macs(64) == sham.macs(64) == directions * 64 * 8 * (9 * 4 + 1)
    sham(torch.randn(2, 3, 5, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in sham.parameters())


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_the_scan_stays_in_float32_under_autocast(directions):
    layer = made(8, 4, directions)
    z = torch.randn(2, 4, 4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = layer(z.bfloat16())
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, layer(z.bfloat16().float()))
