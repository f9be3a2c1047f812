"""Linear layers, convolutions and attention, for CPUs on which PyTorch's own way to a matrix product is not the fast one.

In float32 torch's Linear uses MKL, which runs at less than half speed on AMD's processors with AVX-512 (and at full speed
on those without); its 1 x 1 convolution is the same product by oneDNN, which does not. In bfloat16, as autocast asks for
it, both are oneDNN's. Without gradients the convolution is then the faster one, where tokens outnumber channels: Linear
copies the bias over its whole output first, the convolution reorders its weights. But where oneDNN has no such products,
as on x86 without AVX-512, torch falls back to a loop that is some fifteen times slower than float32. There the same
bfloat16 numbers are multiplied in float32, which keeps as much memory for the backward pass as float32 does.
benchmarks/backbone.py shows both differences. Elsewhere, on a GPU, and where torch.compile takes them, all three are
PyTorch's.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hypotheses.backbones import kernels


class Linear(nn.Linear):
    """(..., C) -> (..., C')."""

    def forward(self, x: Tensor) -> Tensor:
        if not by_float32(x):
            return product(x, self.weight, self.bias)
        with torch.autocast("cpu", enabled=False):
            return product(*widened(x, self.weight, self.bias)).bfloat16()


class Conv2d(nn.Conv2d):
    """(B, C, h, w) -> (B, C', h', w')."""

    def forward(self, input: Tensor) -> Tensor:
        if not by_float32(input):
            return super().forward(input)
        with torch.autocast("cpu", enabled=False):
            return self._conv_forward(*widened(input, self.weight, self.bias)).bfloat16()


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Scaled dot-product attention, each (B, heads, L, C/heads); with `causal`, token i sees tokens 0..i."""
    if not by_float32(q):
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    with torch.autocast("cpu", enabled=False):
        q, k, v = widened(q, k, v)
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal).bfloat16()


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not by_convolution(x):
        return F.linear(x, weight, bias)
    maps = x.flatten(1, -2).unsqueeze(1)  # (B, 1, L, C)
    return (
        F.conv2d(maps.permute(0, 3, 1, 2), weight[:, :, None, None], bias)
        .permute(0, 2, 3, 1)
        .view(*x.shape[:-1], len(weight))
    )


def by_convolution(x: Tensor) -> bool:
    """Whether a Linear layer multiplies x, (..., L, C), by a 1 x 1 convolution."""
    if torch.compiler.is_compiling() or x.device.type != "cpu" or x.ndim < 3 or x.numel() == 0:
        return False
    if not torch.is_autocast_enabled("cpu"):
        return x.dtype == torch.float32 and slow_mkl()
    bf16 = (
        torch.get_autocast_dtype("cpu") == torch.bfloat16
        and bfloat16_products()
        and torch.backends.mkldnn.is_available()
    )
    tokens, channels = x.numel() // x.shape[-1], x.shape[-1]
    return bf16 and not torch.is_grad_enabled() and x.dtype != torch.float64 and tokens >= 2 * channels


def by_float32(x: Tensor) -> bool:
    if torch.compiler.is_compiling():
        return False
    asked = x.device.type == "cpu" and x.dtype != torch.float64 and torch.is_autocast_enabled("cpu")
    return asked and torch.get_autocast_dtype("cpu") == torch.bfloat16 and not bfloat16_products()


def widened(*tensors: Any) -> list[Any]:
    """What autocast would multiply, as float32; None stays None."""
    return [None if v is None else v.bfloat16().float() for v in tensors]


@functools.cache
def slow_mkl() -> bool:
    """Whether this is a processor on which MKL takes its slow way."""
    both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return both and "AMD" in kernels.processor() and "avx512f" in kernels.processor()


@functools.cache
def bfloat16_products() -> bool:
    """Whether oneDNN multiplies bfloat16 on this processor."""
    try:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    except (AttributeError, RuntimeError):  # a PyTorch without oneDNN, which is not known to be slow
        return True
