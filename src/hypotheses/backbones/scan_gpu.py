"""The selective scan on a GPU, float32: by Triton kernels of our own, and by mamba_ssm's kernels.

What is computed, and the letters, stand in backbones/scan.py; here is only how. A program of a kernel takes one image, one
direction, a block of channels and a group of states through the tokens in the order of its direction; the states live in
registers. Nothing of size B*L*E*N is ever stored: the states before each chunk of tokens are, and the backward pass computes
the states inside a chunk again from them, in registers. What several programs add to is given a slot per program, and PyTorch
sums the slots: there are no atomics, and the same input gives the same bits.

Checked without a GPU: values, gradients and bits, in Triton's interpreter; and that Triton and ptxas compile the kernels for
NVIDIA GPUs of 7.5 to 10.0. Checked on one H100, with Triton 3.6: values and gradients, and that a call
repeats its bits. A value with and without gradients is by two kernels, which may differ in the last bit.
Remaining risk: other GPUs, and mamba_ssm's kernels, have not run. Where there are few images, most of a GPU waits: one image of 768
channels is 48 programs, and the tokens of each are one after the other.
"""

# Triton's static_range and tuples are not what a type checker takes them for
# pyright: reportGeneralTypeIssues=false, reportAssignmentType=false, reportArgumentType=false
# pyright: reportOperatorIssue=false, reportCallIssue=false

from __future__ import annotations  # the annotation tl.constexpr is not looked up where there is no triton

import functools
import importlib.util
import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

if TYPE_CHECKING or importlib.util.find_spec("triton"):  # PyTorch does not bring it everywhere
    import triton
    import triton.language as tl
    from triton import jit
else:
    triton = tl = None

    def jit(function):
        return function


BLOCK = 16  # channels of a program; on an H100 32 took 1.1 to 1.6 times as long, and 8 less for long sequences only
STATES = 16  # states per channel of a program, at most: more are more programs
CHUNK = 8  # tokens whose states the backward pass holds in registers
WARPS = 1  # more would need barriers for every sum over channels, and more instructions in all


@jit
def softplus(v):
    """log(1 + exp(v)) and its derivative, for large |v| too, and to the last digits for very negative v."""
    z = tl.exp(-tl.abs(v))  # in (0, 1]
    s = z / (2 + z)  # log(1 + z) = 2 artanh(s), and s <= 1/3
    q = s * s
    p = 1 + q * (0.333332052 + q * (0.200108963 + q * (0.139990706 + q * 0.140139051)))
    return tl.maximum(v, 0) + 2 * s * p, tl.where(v >= 0, 1, z) / (1 + z)


@jit
def place(K, groups, blocks):
    """The image, direction, group of states and block of channels of this program."""
    i = tl.program_id(0).to(tl.int64)
    return i // (blocks * groups * K), i // (blocks * groups) % K, i // blocks % groups, i % blocks


@jit
def token(orders, k, s, L):
    """The token that direction k visits at step s."""
    t = s.to(tl.int64)
    if orders is not None:
        t = tl.load(orders + k * L + s, mask=s < L, other=0).to(tl.int64)
    return t


@jit
def forward_kernel(
    x, dt, A, B, C, D, dt_bias, orders, y, boundaries, images, L, K, E, N, groups, blocks, chunks,
    x_b, x_l, dt_b, dt_l, dt_k, B_b, B_l, B_k, C_b, C_l, C_k,
    MEMORY: tl.constexpr, BLOCK: tl.constexpr, STATES: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """y: (K, groups, B, L, E), each the part of a direction and a group; boundaries: (programs, chunks, BLOCK, STATES)."""
    b, k, group, block = place(K, groups, blocks)
    e = block.to(tl.int32) * BLOCK + tl.arange(0, BLOCK)
    n = group.to(tl.int32) * STATES + tl.arange(0, STATES)
    a = tl.load(A + k * E * N + e[:, None] * N + n, mask=(e < E)[:, None] & (n < N), other=0) * 1.4426950408889634
    d = tl.load(D + k * E + e, mask=(e < E) & (group == 0), other=0)
    x += b * x_b
    dt += b * dt_b + k * dt_k
    B += b * B_b + k * B_k
    C += b * C_b + k * C_k
    y += ((k * groups + group) * images + b) * L * E
    bias = tl.load(dt_bias + k * E + e, mask=e < E, other=0) if dt_bias is not None else None
    inside = tl.arange(0, BLOCK)[:, None] * STATES + tl.arange(0, STATES)
    h = tl.zeros((BLOCK, STATES), tl.float32)
    for chunk in range(chunks):
        if boundaries is not None:
            tl.store(boundaries + (tl.program_id(0).to(tl.int64) * chunks + chunk) * BLOCK * STATES + inside, h)
        read = ()  # all of the chunk before any use: the reads are under way at the same time
        for i in tl.static_range(CHUNK):
            s = chunk * CHUNK + i
            t = token(orders, k, s, L)
            x_t = tl.load(x + t * x_l + e, mask=(e < E) & (s < L), other=0)
            step = tl.load(dt + t * dt_l + e, mask=(e < E) & (s < L), other=0)
            if dt_bias is not None:
                step, _ = softplus(step + bias)
            B_t = tl.load(B + t * B_l + n, mask=(n < N) & (s < L), other=0)
            C_t = tl.load(C + t * C_l + n, mask=(n < N) & (s < L), other=0)
            read = read + ((t, x_t, step, B_t, C_t),)  # noqa: RUF005 (Triton has no unpacking)
        for i in tl.static_range(CHUNK):
            t, x_t, step, B_t, C_t = read[i]
            inflow = (step * x_t)[:, None] * B_t
            h = tl.exp2(step[:, None] * a) * (h if MEMORY else inflow) + inflow
            tl.store(y + t * E + e, tl.sum(h * C_t, 1) + d * x_t, mask=(e < E) & (chunk * CHUNK + i < L))


@jit
def backward_kernel(
    x, dt, A, B, C, D, dt_bias, orders, g, boundaries, dx, ddt, dA, dB, dC, images, L, K, E, N, groups, blocks, chunks,
    x_b, x_l, dt_b, dt_l, dt_k, B_b, B_l, B_k, C_b, C_l, C_k,
    MEMORY: tl.constexpr, BLOCK: tl.constexpr, STATES: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """g: (B, L, E), gradient of the sum over directions; dx: like the forward pass's y; ddt: (groups, B, L, K, E);
    dA: (B, K, E, N); dB, dC: (blocks, B, L, K, N)."""
    b, k, group, block = place(K, groups, blocks)
    e = block.to(tl.int32) * BLOCK + tl.arange(0, BLOCK)
    n = group.to(tl.int32) * STATES + tl.arange(0, STATES)
    a = tl.load(A + k * E * N + e[:, None] * N + n, mask=(e < E)[:, None] & (n < N), other=0) * 1.4426950408889634
    d = tl.load(D + k * E + e, mask=(e < E) & (group == 0), other=0)
    x += b * x_b
    dt += b * dt_b + k * dt_k
    B += b * B_b + k * B_k
    C += b * C_b + k * C_k
    g += b * L * E
    dx += ((k * groups + group) * images + b) * L * E
    ddt += ((group * images + b) * L * K + k) * E
    dB += ((block * images + b) * L * K + k) * N
    dC += ((block * images + b) * L * K + k) * N
    bias = tl.load(dt_bias + k * E + e, mask=e < E, other=0) if dt_bias is not None else None
    inside = tl.arange(0, BLOCK)[:, None] * STATES + tl.arange(0, STATES)
    dh = tl.zeros((BLOCK, STATES), tl.float32)
    da = tl.zeros((BLOCK, STATES), tl.float32)
    for after in range(chunks):
        chunk = chunks - 1 - after
        h = tl.load(boundaries + (tl.program_id(0).to(tl.int64) * chunks + chunk) * BLOCK * STATES + inside)
        read = ()
        for i in tl.static_range(CHUNK):
            s = chunk * CHUNK + i
            t = token(orders, k, s, L)
            x_t = tl.load(x + t * x_l + e, mask=(e < E) & (s < L), other=0)
            step = tl.load(dt + t * dt_l + e, mask=(e < E) & (s < L), other=0)
            if dt_bias is not None:
                step, _ = softplus(step + bias)
            B_t = tl.load(B + t * B_l + n, mask=(n < N) & (s < L), other=0)
            read = read + ((x_t, step, B_t),)  # noqa: RUF005
        states = (h,)
        for i in tl.static_range(CHUNK):
            x_t, step, B_t = read[i]
            inflow = (step * x_t)[:, None] * B_t
            h = tl.exp2(step[:, None] * a) * (h if MEMORY else inflow) + inflow
            states = states + (h,)  # noqa: RUF005 (Triton has no unpacking)
        for j in tl.static_range(CHUNK):
            s = chunk * CHUNK + (CHUNK - 1 - j)
            t = token(orders, k, s, L)
            x_t = tl.load(x + t * x_l + e, mask=(e < E) & (s < L), other=0)
            step = tl.load(dt + t * dt_l + e, mask=(e < E) & (s < L), other=0)
            slope = None
            if dt_bias is not None:
                step, slope = softplus(step + bias)
            B_t = tl.load(B + t * B_l + n, mask=(n < N) & (s < L), other=0)
            C_t = tl.load(C + t * C_l + n, mask=(n < N) & (s < L), other=0)
            g_t = tl.load(g + t * E + e, mask=(e < E) & (s < L), other=0)
            u = step * x_t
            before = states[CHUNK - 1 - j] if MEMORY else u[:, None] * B_t
            dh += g_t[:, None] * C_t
            back = dh * tl.exp2(step[:, None] * a)  # gradient of the state before
            direct = dh if MEMORY else dh + back  # gradient of the inflow: by itself, and as the sham's state before
            w = back * before  # gradient of dt A
            da += w * step[:, None]
            du = tl.sum(direct * B_t, 1)
            dstep = du * x_t + tl.sum(w * a, 1) * 0.6931471805599453
            if dt_bias is not None:
                dstep *= slope
            tl.store(dx + t * E + e, du * step + d * g_t, mask=(e < E) & (s < L))
            tl.store(ddt + t * K * E + e, dstep, mask=(e < E) & (s < L))
            tl.store(dB + t * K * N + n, tl.sum(direct * u[:, None], 0), mask=(n < N) & (s < L))
            tl.store(dC + t * K * N + n, tl.sum(states[CHUNK - j] * g_t[:, None], 0), mask=(n < N) & (s < L))
            dh = back if MEMORY else tl.zeros((BLOCK, STATES), tl.float32)
    tl.store(dA + (b * K + k) * E * N + e[:, None] * N + n, da, mask=(e < E)[:, None] & (n < N))


class TritonScan(torch.autograd.Function):
    """The scan by these kernels. Memory beside inputs and outputs, in units of the B*L*K*E*N floats that all states would
    take: 1/CHUNK for the states before chunks, which are kept for the backward pass; there 2/BLOCK more for dB and dC, and
    1/L for dA; and with several directions or groups of states, 1/STATES for each of y, dx and ddt."""

    @staticmethod
    def forward(ctx, x, dt, A, B, C, D, dt_bias, orders, memory, keep):
        x, dt, B, C = (v if v.stride(-1) == 1 else v.contiguous() for v in (x, dt, B, C))
        A, D = A.contiguous(), D.contiguous()
        dt_bias, orders = (None if v is None else v.contiguous() for v in (dt_bias, orders))
        (images, L, K, E), N = dt.shape, A.shape[2]
        block, states = min(BLOCK, triton.next_power_of_2(E)), min(STATES, triton.next_power_of_2(N))
        groups, blocks, chunks = triton.cdiv(N, states), triton.cdiv(E, block), triton.cdiv(L, CHUNK)
        grid = (images * K * groups * blocks,)
        sizes = (images, L, K, E, N, groups, blocks, chunks)
        strides = (*x.stride()[:2], *dt.stride()[:3], *B.stride()[:3], *C.stride()[:3])
        options = {"MEMORY": memory, "BLOCK": block, "STATES": states, "CHUNK": CHUNK, "num_warps": WARPS}
        inputs = (x, dt, A, B, C, D, dt_bias, orders)
        boundaries = x.new_empty(*grid, chunks, block, states) if keep else None
        y = x.new_empty(K * groups, images, L, E)
        with torch.cuda.device_of(x):
            forward_kernel[grid](*inputs, y, boundaries, *sizes, *strides, **options)
        if keep:
            ctx.save_for_backward(*inputs, boundaries)
            ctx.launch = grid, sizes, strides, options
        return sum_slots(y) / K if K > 1 else sum_slots(y)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y):
        *inputs, boundaries = ctx.saved_tensors
        x, dt, A, B, _, _, dt_bias, _ = inputs
        grid, sizes, strides, options = ctx.launch
        images, L, K, E, _, groups, blocks, _ = sizes
        g = (grad_y / K).contiguous()
        dx = x.new_empty(K * groups, images, L, E)
        ddt = dt.new_empty(groups, *dt.shape)
        dA = A.new_empty(images, *A.shape)
        dB, dC = B.new_empty(blocks, *B.shape), B.new_empty(blocks, *B.shape)
        arguments = [*inputs, g, boundaries, dx, ddt, dA, dB, dC, *sizes, *strides]
        with torch.cuda.device_of(x):
            backward_kernel[grid](*arguments, **options)
        dx, ddt, dA, dB, dC = (sum_slots(v) for v in (dx, ddt, dA, dB, dC))
        dD = (g * x).sum((0, 1)).repeat(K, 1)  # the same in all directions: each visits every token once
        dbias = None if dt_bias is None else ddt.sum((0, 1))
        return dx, ddt, dA, dB, dC, dD, dbias, None, None, None


def sum_slots(v: Tensor) -> Tensor:
    return v.sum(0) if len(v) > 1 else v[0]


def triton_scan(
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
    """`selective_scan` of backbones/scan.py, float32, on a GPU (or, in Triton's interpreter, anywhere)."""
    return TritonScan.apply(x, dt, A, B, C, D, dt_bias, orders, memory, torch.is_grad_enabled())


@functools.cache
def mamba_ssm_installed() -> bool:
    """Whether mamba_ssm can be imported with its CUDA extension for this scan, which is an option of its newer versions."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            interface = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
        return interface.selective_scan_cuda is not None
    except Exception:  # missing, made for another PyTorch (undefined symbols), needs what is not installed, ...
        return False


def mamba_ssm_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    dt_bias: Tensor | None = None,
    orders: Tensor | None = None,
) -> Tensor:
    """The same by mamba_ssm, where `mamba_ssm_installed`: N <= 256, and no sham. Our directions are its groups, K times E its
    channels, and its tensors are channel-major: inputs and output are copied. Its backward pass adds by atomics: gradients
    are the same from run to run to rounding only."""
    scan = importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    images, length, K, E = dt.shape
    x = x.unsqueeze(2).expand_as(dt)
    index = None
    if orders is not None:
        index = orders.long().t().expand(images, -1, -1).unsqueeze(-1)  # (B, L, K, 1)
        x, dt, B, C = (v.gather(1, index.expand(-1, -1, -1, v.shape[-1])) for v in (x, dt, B, C))
    x, dt, B, C = (v.permute(0, 2, 3, 1) for v in (x, dt, B, C))  # (B, K, ., L)
    y = scan(
        x.reshape(images, K * E, length),
        dt.reshape(images, K * E, length),
        A.flatten(0, 1),
        B.contiguous(),
        C.contiguous(),
        D.flatten(),
        delta_bias=None if dt_bias is None else dt_bias.flatten(),
        delta_softplus=dt_bias is not None,
    )
    y = y.unflatten(1, (K, E)).permute(0, 3, 1, 2)  # (B, L, K, E)
    if index is not None:
        y = torch.empty_like(y).scatter(1, index.expand_as(y), y)
    return y.mean(2)
