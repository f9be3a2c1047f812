"""LayerNorm over the channels of a channels-last map, plainly and fused on a CPU."""

import ctypes

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hypotheses.backbones import kernels

TYPES = (torch.float32, torch.bfloat16)


class Norm(nn.LayerNorm):
    """LayerNorm of (..., C), eps 1e-6 as everywhere in MambaOut.

    feeds_linear  a Linear layer comes next, and nothing else: under autocast the output has at once the type that the
                  Linear layer would convert it to
    """

    def __init__(self, dim: int, feeds_linear: bool = False):
        super().__init__(dim, eps=1e-6)
        self.feeds_linear = feeds_linear

    def forward(self, x: Tensor) -> Tensor:
        if not fused(x, self):
            return super().forward(x)
        cast = self.feeds_linear and torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") in TYPES
        dtype = torch.get_autocast_dtype("cpu") if cast else x.dtype
        return FusedNorm.apply(x, self.weight, self.bias, self.eps, dtype)


def fused(x: Tensor, norm: nn.LayerNorm) -> bool:
    kind = x.device.type == "cpu" and x.dtype in TYPES and norm.weight.dtype == torch.float32
    return kind and x.numel() > 0 and x.shape[-1:] == norm.normalized_shape and kernels.library("norm") is not None


class FusedNorm(torch.autograd.Function):
    """LayerNorm by kernels/norm.cpp: CPU; x and the output float32 or bfloat16, weight and bias float32."""

    @staticmethod
    def forward(ctx, x, weight, bias, eps, dtype):
        x, weight, bias = (v.contiguous() for v in (x, weight, bias))
        y = x.new_empty(x.shape, dtype=dtype)
        mean, scale = x.new_empty(2, x.numel() // x.shape[-1], dtype=torch.float32).unbind(0)
        eps = ctypes.c_float(eps)
        kernels.call("norm", "norm_forward", *FusedNorm.sizes(x, y), ctypes.byref(eps), x, weight, bias, y, mean, scale)
        ctx.save_for_backward(x, weight, mean, scale)
        ctx.dtype = dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, gy):
        x, weight, mean, scale = ctx.saved_tensors
        gy, gx = gy.to(ctx.dtype).contiguous(), torch.empty_like(x)
        gweight, gbias = torch.empty_like(weight), torch.empty_like(weight)
        tensors = (x, weight, mean, scale, gy, gx, gweight, gbias)
        kernels.call("norm", "norm_backward", *FusedNorm.sizes(x, gy), *tensors)
        return gx, gweight, gbias, None, None

    @staticmethod
    def sizes(x: Tensor, y: Tensor) -> list[int]:
        return [x.numel() // x.shape[-1], x.shape[-1], x.dtype == torch.bfloat16, y.dtype == torch.bfloat16]
