"""The selective scan of Mamba (S6): what it computes, readably, and `selective_scan`, which chooses the fastest way to it.

Papers: Mamba, arXiv 2312.00752, Algorithm 2; MambaOut, eq. 1 to 3, with the first-order B-bar = dt B of Mamba's code. Per
direction k and channel e, over the tokens in the order of that direction:

    h_t = exp(dt_t A) h_(t-1) + dt_t B_t x_t        N states per channel
    y_t = C_t . h_t + D x_t

and the directions are averaged. All directions read the same tokens, each in its own order.

B batch; L tokens; K directions; E channels; N states per channel.

    x        (B, L, E)
    dt       (B, L, K, E)   step sizes; with dt_bias, what softplus(dt + dt_bias) makes step sizes of
    A        (K, E, N)      negative
    B, C     (B, L, K, N)
    D        (K, E)
    dt_bias  (K, E) or None
    orders   (K, L) int32   the token that direction k visits at step t: a permutation each; None is 0, 1, 2, ... for all
    memory   False makes the sham: h_(t-1) in the first line is replaced by dt_t B_t x_t, so that no token sees another,
             with the same parameters, all of them in use, and the same operations
    ->       (B, L, E)
"""

import contextlib
import ctypes
import math
import os
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import softplus

from hypotheses.backbones import kernels, scan_gpu
from hypotheses.errors import UserError

CPP_CHUNK = 32  # tokens between two states that the compiled scan keeps
CHUNK_BYTES = 2**20  # states that ChunkedScan keeps at a time: they stay in a core's second-level cache


def selective_scan_reference(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    dt_bias: Tensor | None = None,
    orders: Tensor | None = None,
    memory: bool = True,
) -> Tensor:
    """The recurrence token by token, direction by direction, in the dtype of its inputs. For reading and for testing."""
    if dt_bias is not None:
        dt = softplus(dt + dt_bias)
    directions, length = dt.shape[2], x.shape[1]
    total = torch.zeros_like(x)
    for k in range(directions):
        order = torch.arange(length) if orders is None else orders[k].long()
        h = x.new_zeros(x.shape[0], *A.shape[1:])  # (B, E, N)
        y = []
        for t in order.tolist():
            x_t, dt_t, B_t, C_t = x[:, t], dt[:, t, k], B[:, t, k], C[:, t, k]  # (B, E), (B, E), (B, N), (B, N)
            decay = torch.exp(dt_t.unsqueeze(-1) * A[k])
            inflow = (dt_t * x_t).unsqueeze(-1) * B_t.unsqueeze(-2)
            h = decay * (h if memory else inflow) + inflow
            y.append((h * C_t.unsqueeze(-2)).sum(-1) + D[k] * x_t)
        total = total + torch.stack(y, dim=1)[:, order.argsort()]
    return total / directions


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    dt_bias: Tensor | None = None,
    orders: Tensor | None = None,
    memory: bool = True,
) -> Tensor:
    """`selective_scan_reference`, to rounding, in values and gradients, by the way that `implementation` chooses. Not
    differentiable twice. The memory for the backward pass is a state per chunk of tokens, not one per token.

    Raises ValueError on shapes or dtypes that do not belong together.
    """
    check(x, dt, A, B, C, D, dt_bias, orders)
    if x.is_meta:
        return MetaScan.apply(x, dt, A, B, C, D, dt_bias, orders, memory)
    return FUNCTIONS[implementation(x, A.shape[-1], memory)](x, dt, A, B, C, D, dt_bias, orders, memory)


def check(x, dt, A, B, C, D, dt_bias, orders) -> None:
    batch, length, channels = x.shape
    directions, d_state = dt.shape[2], A.shape[-1]
    expected = {
        "dt": (dt, (batch, length, directions, channels)),
        "A": (A, (directions, channels, d_state)),
        "B": (B, (batch, length, directions, d_state)),
        "C": (C, (batch, length, directions, d_state)),
        "D": (D, (directions, channels)),
    }
    if dt_bias is not None:
        expected["dt_bias"] = (dt_bias, (directions, channels))
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape or tensor.dtype != x.dtype or tensor.device != x.device:
            raise ValueError(f"{name} is {tuple(tensor.shape)} {tensor.dtype}, and {shape} {x.dtype} goes with x")
    if orders is not None and (orders.shape != (directions, length) or orders.device != x.device):
        raise ValueError(f"orders is {tuple(orders.shape)}, and {(directions, length)} goes with x")


def implementation(x: Tensor, d_state: int = 16, memory: bool = True) -> str:
    """Which of FUNCTIONS computes the scan of `x`: what the environment variable HYPOTHESES_SCAN says, else

    cpp        on a CPU in float32, where there is a compiler
    mamba_ssm  on a GPU in float32, where that package is installed with its CUDA kernel; but not for the sham, which it does
               not have, nor where PyTorch is to use deterministic algorithms only, since it adds gradients up in any order.
               HYPOTHESES_SCAN=triton makes the sham and its twin run on the same kernel
    triton     on a GPU in float32 else
    chunked    everywhere else
    """
    asked = os.environ.get("HYPOTHESES_SCAN", "auto")
    single, device = x.dtype == torch.float32, x.device.type
    possible = {
        "reference": True,
        "chunked": True,
        "cpp": single and device == "cpu" and x.numel() > 0 and kernels.library("scan") is not None,
        "triton": single and device == "cuda" and scan_gpu.triton is not None,
        "mamba_ssm": single and device == "cuda" and memory and d_state <= 256 and scan_gpu.mamba_ssm_installed(),
    }
    if asked != "auto":
        if asked not in possible:
            raise UserError(f"HYPOTHESES_SCAN={asked}: choose one of auto, {', '.join(possible)}")
        if not possible[asked]:
            what = f"{x.dtype} on {device}".removeprefix("torch.") + ("" if memory else " without memory (the sham)")
            raise UserError(f"HYPOTHESES_SCAN={asked} cannot be had here for {what}: choose auto, or chunked")
        return asked
    strict = torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    if possible["mamba_ssm"] and not strict:
        return "mamba_ssm"
    return next(way for way in ("cpp", "triton", "chunked") if possible[way])


class ChunkedScan(torch.autograd.Function):
    """The scan in plain PyTorch, chunk by chunk of tokens: states are laid out (chunk, B, K, N, E), so that one step of the
    recurrence is one `addcmul` on contiguous memory; the backward pass computes the states of a chunk again from the one
    before it. Takes what `in_order` has made of the inputs, and gives the sum over directions."""

    @staticmethod
    def states(
        decay: Tensor, h: Tensor, before: Tensor, x: Tensor, dt: Tensor, At: Tensor, B: Tensor, memory: bool
    ) -> None:
        """Fill decay and h, (T, B, K, N, E), for T tokens that follow the state `before`, (B, K, N, E)."""
        torch.mul(dt.unsqueeze(-2), At, out=decay).exp_()
        torch.mul((dt * x).unsqueeze(-2), B.unsqueeze(-1), out=h)
        if not memory:
            h.addcmul_(decay, h)
            return
        for decay_t, h_t in zip(decay.unbind(0), h.unbind(0), strict=True):
            before = h_t.addcmul_(decay_t, before)

    @staticmethod
    def forward(ctx, x, dt, A, B, C, D, memory):
        x, dt, B, C = (v.transpose(0, 1).contiguous() for v in (x, dt, B, C))  # (L, B, K, .)
        At = A.transpose(1, 2).contiguous()  # (K, N, E)
        length, batch, groups, channels = x.shape
        num_states = At.shape[1]
        state = (batch, groups, num_states, channels)
        # at least the square root of L, which keeps the boundaries and one chunk's states both small
        chunk = max(math.isqrt(length), min(length, CHUNK_BYTES // max(1, math.prod(state) * x.element_size())))
        starts = range(0, length, chunk)
        y = torch.empty_like(x)
        boundaries = x.new_zeros(len(starts) + 1, *state)  # the state before each chunk
        decay, h = x.new_empty(chunk, *state), x.new_empty(chunk, *state)
        for k, s in enumerate(starts):
            e = min(length, s + chunk)
            decay_k, h_k = decay[: e - s], h[: e - s]
            ChunkedScan.states(decay_k, h_k, boundaries[k], x[s:e], dt[s:e], At, B[s:e], memory)
            boundaries[k + 1] = h_k[-1]
            # products and sums, and not matrix products: so small ones are slower than two passes over memory
            torch.sum(torch.mul(h_k, C[s:e].unsqueeze(-1), out=decay_k), -2, out=y[s:e])
        ctx.save_for_backward(x, dt, At, B, C, D, boundaries)
        ctx.chunk, ctx.memory = chunk, memory
        return y.addcmul_(x, D).transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y):
        x, dt, At, B, C, D, boundaries = ctx.saved_tensors
        g = grad_y.transpose(0, 1).contiguous()
        length, chunk, state, memory = x.shape[0], ctx.chunk, boundaries.shape[1:], ctx.memory
        dx, ddt, dB, dC = (torch.empty_like(v) for v in (x, dt, B, C))
        dAt = torch.zeros_like(At)
        decay, dh = x.new_empty(chunk, *state), x.new_empty(chunk, *state)
        h, work = x.new_empty(chunk + 1, *state), x.new_empty(chunk, *state)
        carry = x.new_zeros(state)  # gradient that reaches the last state of a chunk from the chunk behind it
        for k in reversed(range(boundaries.shape[0] - 1)):
            s, e = k * chunk, min(length, (k + 1) * chunk)
            x_k, dt_k, g_k, decay_k, dh_k = x[s:e], dt[s:e], g[s:e], decay[: e - s], dh[: e - s]
            h_k, work_k = h[: e - s + 1], work[: e - s]
            h_k[0] = boundaries[k]
            ChunkedScan.states(decay_k, h_k[1:], h_k[0], x_k, dt_k, At, B[s:e], memory)
            torch.sum(torch.mul(h_k[1:], g_k.unsqueeze(-2), out=work_k), -1, out=dC[s:e])
            torch.mul(g_k.unsqueeze(-2), C[s:e].unsqueeze(-1), out=dh_k)
            u = (dt_k * x_k).unsqueeze(-2)
            if memory:  # dh_t = g_t C_t + decay_(t+1) dh_(t+1)
                behind = dh_k[-1].add_(carry)
                for t in reversed(range(e - s - 1)):
                    behind = dh_k[t].addcmul_(decay_k[t + 1], behind)
                carry = decay_k[0] * dh_k[0]
                ddecay, before = decay_k.mul_(dh_k), h_k[:-1]
            else:  # the state before is u B, which dh reaches through the decay too
                ddecay, before = decay_k.mul_(dh_k), torch.mul(u, B[s:e].unsqueeze(-1), out=h_k[1:])
                dh_k += ddecay
            ddecay.mul_(before)  # gradient of dt_t A, (T, B, K, N, E)
            torch.sum(torch.mul(dh_k, u, out=work_k), -1, out=dB[s:e])
            du = torch.mul(dh_k, B[s:e].unsqueeze(-1), out=work_k).sum(-2)  # gradient of dt_t x_t, (T, B, K, E)
            dAt += torch.mul(ddecay, dt_k.unsqueeze(-2), out=work_k).sum((0, 1))
            dx[s:e] = du * dt_k + g_k * D
            ddt[s:e] = du * x_k + torch.mul(ddecay, At, out=work_k).sum(-2)
        dD = (g * x).sum((0, 1))
        dx, ddt, dB, dC = (v.transpose(0, 1) for v in (dx, ddt, dB, dC))
        return dx, ddt, dAt.transpose(1, 2), dB, dC, dD, None


def chunked(x, dt, A, B, C, D, dt_bias, orders, memory):
    """ChunkedScan around the conventions of `selective_scan`: on any device, in float32 and float64."""
    if dt_bias is not None:
        dt = softplus(dt + dt_bias)
    directions = dt.shape[2]
    x = x.unsqueeze(2).expand(*dt.shape)
    if orders is None:
        y = ChunkedScan.apply(x, dt, A, B, C, D, memory)
    else:
        index = orders.long().t().expand(x.shape[0], -1, -1).unsqueeze(-1)  # (B, L, K, 1)
        x, dt, B, C = (v.gather(1, index.expand(-1, -1, -1, v.shape[-1])) for v in (x, dt, B, C))
        y = ChunkedScan.apply(x, dt, A, B, C, D, memory)
        y = torch.empty_like(y).scatter(1, index.expand_as(y), y)
    return y.mean(2) if directions > 1 else y.squeeze(2)


class MetaScan(torch.autograd.Function):
    """No scan, but its shape, and what it keeps for the backward pass: for counting costs on the meta device."""

    chunk = CPP_CHUNK  # tokens between two states that are kept: as on a CPU, but inside of `kept_every`

    @staticmethod
    def forward(ctx, x, dt, A, B, C, D, dt_bias, orders, memory):
        boundaries = x.new_empty(x.shape[0], -(-x.shape[1] // MetaScan.chunk), *A.shape)
        ctx.save_for_backward(x, dt, A, B, C, D, dt_bias, orders, boundaries)
        return torch.empty_like(x)


@contextlib.contextmanager
def kept_every(chunk: int) -> Iterator[None]:
    """Inside, MetaScan keeps a state every so many tokens, as the scan of another device does."""
    before, MetaScan.chunk = MetaScan.chunk, chunk
    try:
        yield
    finally:
        MetaScan.chunk = before


class Arguments(ctypes.Structure):
    """`struct Scan` of kernels/scan.cpp."""

    _fields_ = (
        [(name, ctypes.c_int64) for name in ("B", "L", "K", "E", "N", "memory")]
        + [("x", ctypes.c_void_p)]
        + [(name, ctypes.c_int64) for name in ("x_b", "x_l")]
        + [("dt", ctypes.c_void_p)]
        + [(name, ctypes.c_int64) for name in ("dt_b", "dt_l", "dt_k")]
        + [(name, ctypes.c_void_p) for name in ("A", "Bm", "Cm")]
        + [(name, ctypes.c_int64) for name in ("B_b", "B_l", "B_k", "C_b", "C_l", "C_k")]
        + [(name, ctypes.c_void_p) for name in ("D", "dt_bias", "orders")]
        + [("scale", ctypes.c_float)]
    )


class CppScan(torch.autograd.Function):
    """The scan by kernels/scan.cpp: CPU, float32."""

    @staticmethod
    def arguments(x, dt, A, B, C, D, dt_bias, orders, memory) -> Arguments:
        batch, length, directions, channels = dt.shape
        p = Arguments(B=batch, L=length, K=directions, E=channels, N=A.shape[2], memory=memory, scale=1 / directions)
        p.x, p.dt, p.A, p.Bm, p.Cm, p.D = (v.data_ptr() for v in (x, dt, A, B, C, D))
        p.dt_bias = None if dt_bias is None else dt_bias.data_ptr()
        p.orders = None if orders is None else orders.data_ptr()
        p.x_b, p.x_l = x.stride()[:2]
        p.dt_b, p.dt_l, p.dt_k = dt.stride()[:3]
        p.B_b, p.B_l, p.B_k = B.stride()[:3]
        p.C_b, p.C_l, p.C_k = C.stride()[:3]
        return p

    @staticmethod
    def forward(ctx, x, dt, A, B, C, D, dt_bias, orders, memory, keep):
        x, dt, B, C = (v if v.stride(-1) == 1 else v.contiguous() for v in (x, dt, B, C))
        if torch.empty_like(dt).stride() != dt.stride():  # a part of something larger; its gradient has its strides
            dt = dt.contiguous()
        A, D = A.contiguous(), D.contiguous()
        dt_bias = None if dt_bias is None else dt_bias.contiguous()
        orders = None if orders is None else orders.to(torch.int32).contiguous()
        p = CppScan.arguments(x, dt, A, B, C, D, dt_bias, orders, memory)
        y, boundaries = x.new_empty(x.shape), None
        if keep:
            size = ctypes.c_int64()
            kernels.call("scan", "scan_boundaries_size", ctypes.byref(p), ctypes.byref(size))
            boundaries = x.new_empty(size.value)
            ctx.save_for_backward(x, dt, A, B, C, D, dt_bias, orders, boundaries)
            ctx.memory = memory
        kernels.call("scan", "scan_forward", ctypes.byref(p), y, boundaries)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y):
        *inputs, boundaries = ctx.saved_tensors
        x, dt, A, B, C, D, dt_bias, orders = inputs
        p = CppScan.arguments(x, dt, A, B, C, D, dt_bias, orders, ctx.memory)
        grads = [x.new_empty(x.shape), torch.empty_like(dt)] + [v.new_empty(v.shape) for v in (A, B, C, D)]
        grads.append(None if dt_bias is None else dt_bias.new_empty(dt_bias.shape))
        grad_y = grad_y.contiguous()
        kernels.call("scan", "scan_backward", ctypes.byref(p), grad_y, boundaries, *grads)
        return *grads, None, None, None


def cpp(x, dt, A, B, C, D, dt_bias, orders, memory):
    return CppScan.apply(x, dt, A, B, C, D, dt_bias, orders, memory, torch.is_grad_enabled())


def mamba_ssm(x, dt, A, B, C, D, dt_bias, orders, memory):
    assert memory  # `implementation` knows
    return scan_gpu.mamba_ssm_scan(x, dt, A, B, C, D, dt_bias, orders)


FUNCTIONS = {
    "reference": selective_scan_reference,
    "chunked": chunked,
    "cpp": cpp,
    "triton": scan_gpu.triton_scan,
    "mamba_ssm": mamba_ssm,
}
