"""The other ways of Linear layers, convolutions and attention against PyTorch's own: values and gradients."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hypotheses.backbones import build_classifier, products
from hypotheses.backbones.products import Conv2d, Linear, attention
from hypotheses.config import compose
from test_norm import close, made, results


@pytest.mark.parametrize("shape", [(2, 5, 7, 48), (1, 1, 1, 3), (3, 1, 9, 20), (4, 11, 20)], ids=str)
def test_both_ways_of_a_linear_layer_are_equal(shape, monkeypatch):
    layer, x = made(Linear(shape[-1], 37)), torch.randn(shape)
    found = []
    for slow in (True, False):
        monkeypatch.setattr(products, "slow_mkl", lambda slow=slow: slow)
        assert products.by_convolution(x) == slow
        found.append(results(Linear.forward, layer, x, torch.float32))
    close(found[0], [v.double() for v in found[1]], 1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert not products.by_convolution(x)


@pytest.mark.skipif(not products.bfloat16_products(), reason="no bfloat16 products on this processor")
def test_inference_under_autocast_is_by_convolution_where_tokens_outnumber_channels():
    layer = made(Linear(24, 37))
    few, many = torch.randn(2, 23, 24), torch.randn(2, 5, 7, 24)
    with torch.autocast("cpu", torch.bfloat16):
        assert not products.by_convolution(many)  # there a gradient may be asked for
        with torch.no_grad():
            assert products.by_convolution(many) and not products.by_convolution(few)
            assert not products.by_convolution(many.flatten(0, 2)) and not products.by_convolution(many.double())
            found = layer(many)
            torch.testing.assert_close(found, nn.Linear.forward(layer, many), rtol=2**-7, atol=1e-6)
            assert found.dtype == torch.bfloat16 and found.is_contiguous()


@pytest.mark.parametrize("by_convolution", [True, False])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (Linear(48, 37), (2, 5, 7, 48)),
        (Linear(20, 8), (4, 20)),
        (Linear(20, 8, bias=False), (4, 3, 20)),
        (Conv2d(3, 8, 3, stride=2, padding=1), (2, 3, 9, 12)),
    ],
    ids=str,
)
def test_under_autocast_float32_multiplies_the_same_numbers(layer, shape, by_convolution, monkeypatch):
    """Which are those of a bfloat16 product: values differ by its rounding of the result alone, gradients by that of the
    gradient that comes in, and of theirs."""
    monkeypatch.setattr(products, "bfloat16_products", lambda: False)
    monkeypatch.setattr(products, "slow_mkl", lambda: by_convolution)
    layer, x = made(layer), torch.randn(shape)

    def mixed(layer, x):
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        assert y.dtype == torch.bfloat16
        return y

    found = results(mixed, layer, x, torch.float32)
    parent = type(layer).__mro__[1]  # nn.Linear or nn.Conv2d
    exact = made(layer).double()
    for parameter in exact.parameters():
        parameter.data = parameter.data.bfloat16().double()
    x = x.bfloat16()
    true = results(parent.forward, exact, x, torch.float64)
    close(found, true, 4e-3)
    # where the result is not rounded, nothing else is: the largest difference is half a digit of bfloat16
    assert ((found[0].double() - true[0]).abs() <= 2**-8 * true[0].abs() + 1e-6).all()


@pytest.mark.parametrize("causal", [False, True])
def test_attention_under_autocast(causal, monkeypatch):
    q, k, v = (torch.randn(2, 4, 9, 16).bfloat16().float().requires_grad_() for _ in range(3))
    weight = torch.randn(2, 4, 9, 16).bfloat16()
    true = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    gradients = torch.autograd.grad(true, (q, k, v), weight.float())
    for native in (True, False):
        monkeypatch.setattr(products, "bfloat16_products", lambda native=native: native)
        with torch.autocast("cpu", torch.bfloat16):
            found = attention(q, k, v, causal)
        assert found.dtype == torch.bfloat16
        close([found], [true.double()], 1e-2)
        close(torch.autograd.grad(found, (q, k, v), weight), [g.double() for g in gradients], 2e-2)
    assert torch.equal(attention(q, k, v, causal), F.scaled_dot_product_attention(q, k, v, is_causal=causal))


def test_without_autocast_nothing_is_rounded(monkeypatch):
    monkeypatch.setattr(products, "bfloat16_products", lambda: False)
    x = torch.randn(2, 3, 8, 8)
    conv = made(Conv2d(3, 4, 3))
    assert torch.equal(conv(x), nn.Conv2d.forward(conv, x))
    assert not products.by_float32(x)
    with torch.autocast("cpu", torch.float16):
        assert not products.by_float32(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert products.by_float32(x) and not products.by_float32(x.to("meta"))
        assert torch.equal(conv.double()(x.double()), nn.Conv2d.forward(conv, x.double()))  # autocast leaves it alone


@pytest.mark.parametrize("shape", [(0, 2, 2, 6), (0, 5, 6), (2, 0, 6), (0, 6)], ids=str)
def test_an_empty_batch(shape, monkeypatch):
    monkeypatch.setattr(products, "slow_mkl", lambda: True)
    layer = Linear(6, 4)
    assert layer(torch.zeros(shape)).shape == (*shape[:-1], 4)
    monkeypatch.setattr(products, "bfloat16_products", lambda: False)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.zeros(shape)).shape == (*shape[:-1], 4)


def test_compiled_code_takes_pytorchs_way(monkeypatch):
    monkeypatch.setattr(products, "bfloat16_products", lambda: False)
    layer, x = Linear(6, 4), torch.randn(2, 3, 6)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    assert torch.allclose(compiled(x), nn.Linear.forward(layer, x), atol=1e-6)


@pytest.mark.parametrize("name", ["mambaout_atto_ssm", "vit_atto_causal"])
def test_a_whole_network_gives_the_same_either_way(name, monkeypatch):
    model = build_classifier(compose([f"backbone={name}"])["backbone"], 10, 0)
    x, found = torch.randn(2, 3, 32, 32), []
    with torch.no_grad():
        exact = model.double()(x.double())
        model.float()
        for native in (True, False):
            monkeypatch.setattr(products, "bfloat16_products", lambda native=native: native)
            with torch.autocast("cpu", torch.bfloat16):
                found.append((model(x).double() - exact).norm() / exact.norm())
    assert max(found) < 2e-2
    assert found[1] < 1.5 * found[0]  # not less exact than bfloat16 products
