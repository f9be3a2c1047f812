"""The gate of a Gated CNN block, out = GELU(gate) * concat(rest, mixed), plainly and fused on a CPU.

z is the output of fc1, channels last, (B, h, w, 2 H) with H the hidden channels: gate (H), rest (H - E), raw (E).

    gated_conv(z, conv)     out, (B, h, w, H), with mixed = conv(raw), a depthwise convolution
    conv_silu(z, conv)      z, and SiLU(conv(raw)), (B, h, w, E), of which the other mixers make `mixed`
    gated(z, mixed)         out, with mixed given, (B, h, w, E)

The plain forms say what is computed, and run on any device. The fused ones, kernels/gate.cpp, do without copies for the
split, the concatenation and the layout of the convolution; they are used on a CPU in float32 and bfloat16 where there is a
compiler, and do not agree with the plain ones to the last bit. Under bfloat16 they round less often.
"""

import ctypes

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import gelu, silu

from hypotheses.backbones import kernels

FUSED_KERNEL_SIZE = 7
TYPES = (torch.float32, torch.bfloat16)


def gated_conv(z: Tensor, conv: nn.Conv2d) -> Tensor:
    return GatedConv.apply(z, conv.weight, conv.bias) if fused(z, conv) else gated_conv_plain(z, conv)


def conv_silu(z: Tensor, conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """The z that it returns is for `gated` and for nothing else: the gradient that `gated` makes of it is written to."""
    return ConvSiLU.apply(z, conv.weight, conv.bias) if fused(z, conv) else conv_silu_plain(z, conv)


def gated(z: Tensor, mixed: Tensor) -> Tensor:
    if mixed.shape[:-1] != z.shape[:-1] or mixed.shape[-1] > z.shape[-1] // 2:
        raise ValueError(f"mixed {tuple(mixed.shape)} does not belong to z {tuple(z.shape)}")
    return Gated.apply(z, mixed.to(z.dtype)) if fused(z) else gated_plain(z, mixed.to(z.dtype))


def gated_conv_plain(z: Tensor, conv: nn.Conv2d) -> Tensor:
    return gated_plain(z, convolve(z, conv))


def conv_silu_plain(z: Tensor, conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    return z, silu(convolve(z, conv))


def convolve(z: Tensor, conv: nn.Conv2d) -> Tensor:
    raw = z[..., -conv.out_channels :]
    if reaches_over(raw, conv):
        return convolve_by_matrix(raw, conv)
    return conv(raw.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def reaches_over(raw: Tensor, conv: nn.Conv2d) -> bool:
    """Whether the kernel is larger than the usual one and has as many taps as the map (B, h, w, C) has tokens, on a CPU: there it is
    faster as a matrix, 25 x 25 on 16 x 16 tokens 20 times."""
    size, (_, height, width, _) = conv.kernel_size[0], raw.shape
    wide = size > FUSED_KERNEL_SIZE and height * width <= size**2
    return wide and raw.device.type == "cpu" and raw.numel() > 0 and keeps_size(conv, size)


def convolve_by_matrix(raw: Tensor, conv: nn.Conv2d) -> Tensor:
    """conv(raw) of (B, h, w, C), as a product with the matrix (h w, h w) that the kernel of each channel is on such a map."""
    _, height, width, channels = raw.shape
    size = conv.kernel_size[0]
    # to the offsets -(h - 1)..h - 1 and -(w - 1)..w - 1 that there are between tokens: shorter or longer than the kernel
    above, beside = height - 1 - size // 2, width - 1 - size // 2
    taps = nn.functional.pad(conv.weight.squeeze(1), (beside, beside, above, above))
    # [channel, -y, -x, Y, X]: the tap of the token (y, x) in the output at (Y, X)
    windows = taps.flip(1, 2).unfold(1, height, 1).unfold(2, width, 1)
    matrix = windows.flip(1, 2).reshape(channels, height * width, height * width)
    out = (raw.flatten(1, 2).permute(2, 0, 1) @ matrix).permute(1, 2, 0).unflatten(1, (height, width))
    return out if conv.bias is None else out + conv.bias.to(out.dtype)


def gated_plain(z: Tensor, mixed: Tensor) -> Tensor:
    hidden = z.shape[-1] // 2
    gate, rest, _ = z.split((hidden, hidden - mixed.shape[-1], mixed.shape[-1]), dim=-1)
    return gelu(gate) * torch.cat((rest, mixed), dim=-1)


def fused(z: Tensor, conv: nn.Conv2d | None = None) -> bool:
    """Whether z takes the fused way, with this convolution."""
    return (
        z.device.type == "cpu"
        and z.dtype in TYPES
        and z.numel() > 0
        and (conv is None or suits(conv))
        and kernels.library("gate") is not None
    )


def suits(conv: nn.Conv2d) -> bool:
    """Whether it is the convolution that kernels/gate.cpp computes: depthwise, 7 x 7, of the same size, in float32."""
    return keeps_size(conv, FUSED_KERNEL_SIZE) and conv.bias is not None and conv.weight.dtype == torch.float32


def keeps_size(conv: nn.Conv2d, size: int) -> bool:
    """Whether it is a depthwise convolution of size x size that leaves the map as large as it was."""
    return (
        conv.kernel_size == (size, size)
        and size % 2 == 1
        and conv.padding == (size // 2, size // 2)
        and conv.stride == conv.dilation == (1, 1)
        and conv.groups == conv.in_channels == conv.out_channels
        and conv.padding_mode == "zeros"
    )


class Sizes(ctypes.Structure):
    """`struct Sizes` of kernels/gate.cpp."""

    _fields_ = tuple((name, ctypes.c_int64) for name in ("B", "H", "W", "h", "c"))


def convolved(gate: bool, z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """kernels/gate.cpp: the gate's output, or SiLU(conv(raw))."""
    out = z.new_empty(*z.shape[:3], z.shape[3] // 2 if gate else weight.shape[0])
    sizes = Sizes(*z.shape[:3], z.shape[3] // 2, weight.shape[0])
    kernels.call("gate", "convolved_forward", sizes, gate, z.dtype == torch.bfloat16, z, weight, bias, out)
    return out


def convolved_backward(
    gate: bool, z: Tensor, weight: Tensor, bias: Tensor, gout: Tensor, gz: Tensor
) -> tuple[Tensor, Tensor]:
    """Write the gradient of z, or of its raw channels alone, into gz; return those of weight and bias."""
    sizes = Sizes(*z.shape[:3], z.shape[3] // 2, weight.shape[0])
    gweight, gbias = torch.empty_like(weight), torch.empty_like(bias)
    gout = gout.to(z.dtype).contiguous()
    tensors = (z, weight, bias, gout, gz, gweight, gbias)
    kernels.call("gate", "convolved_backward", sizes, gate, z.dtype == torch.bfloat16, *tensors)
    return gweight, gbias


class GatedConv(torch.autograd.Function):
    """`gated_conv_plain` by kernels/gate.cpp: CPU, z float32 or bfloat16, weight and bias float32, 7 x 7."""

    @staticmethod
    def forward(ctx, z, weight, bias):
        z, weight, bias = (v.contiguous() for v in (z, weight, bias))
        ctx.save_for_backward(z, weight, bias)
        return convolved(True, z, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gout):
        z, weight, bias = ctx.saved_tensors
        gz = torch.empty_like(z)
        return gz, *convolved_backward(True, z, weight, bias, gout, gz)


class ConvSiLU(torch.autograd.Function):
    """`conv_silu_plain` by kernels/gate.cpp. z passes through, so that in the backward pass that of the raw channels is added
    to the gradient that `Gated` has made of it, in its place."""

    @staticmethod
    def forward(ctx, z, weight, bias):
        z, weight, bias = (v.contiguous() for v in (z, weight, bias))
        ctx.save_for_backward(z, weight, bias)
        return z.view_as(z), convolved(False, z, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gz, gout):
        z, weight, bias = ctx.saved_tensors
        gz = gz.to(z.dtype).contiguous()
        return gz, *convolved_backward(False, z, weight, bias, gout, gz)


class Gated(torch.autograd.Function):
    """`gated_plain` by kernels/gate.cpp: CPU, float32 or bfloat16, both of one dtype."""

    @staticmethod
    def forward(ctx, z, mixed):
        z, mixed = z.contiguous(), mixed.contiguous()
        out = z.new_empty(*z.shape[:-1], z.shape[-1] // 2)
        kernels.call("gate", "gated_forward", *Gated.sizes(z, mixed), z, mixed, out)
        ctx.save_for_backward(z, mixed)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gout):
        z, mixed = ctx.saved_tensors
        gout, gz, gmixed = gout.to(z.dtype).contiguous(), torch.empty_like(z), torch.empty_like(mixed)
        kernels.call("gate", "gated_backward", *Gated.sizes(z, mixed), z, mixed, gout, gz, gmixed)
        return gz, gmixed

    @staticmethod
    def sizes(z: Tensor, mixed: Tensor) -> list[int]:
        return [z.numel() // z.shape[-1], z.shape[-1] // 2, mixed.shape[-1], z.dtype == torch.bfloat16]
