"""The selective state space model (S6): the layer, and its scan in a readable and in a fast version.

Papers: Mamba, arXiv 2312.00752, Algorithm 2 and section 3.5; bidirectional as in Vim, arXiv 2401.09417. Per direction k
and channel e, for tokens t = 1..L in scan order (MambaOut's eq. 1 to 3, with the first-order B-bar of Mamba's code):

    dt_t = softplus(W_dt W_delta z_t + b)      B_t = W_B z_t      C_t = W_C z_t          "selective": they depend on z
    h_t  = exp(dt_t A) h_(t-1) + dt_t B_t z_t                                            N states per channel
    y_t  = C_t . h_t + D z_t

B batch; L tokens; K directions; E channels; N states per channel; R rank of dt.
"""

import math

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

DT_MIN, DT_MAX = 1e-3, 1e-1  # range of the initial step sizes (Mamba, section 3.6)
CHUNK_BYTES = 2**20  # states that the fast scan keeps at a time: they stay in a core's second-level cache


def selective_scan_reference(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """The recurrence above, token by token, in the dtype of its inputs. Shapes as in `selective_scan`."""
    h = x.new_zeros(*x.shape[:1], *A.shape)  # (B, K, E, N)
    y = []
    for x_t, dt_t, B_t, C_t in zip(x.unbind(1), dt.unbind(1), B.unbind(1), C.unbind(1), strict=True):
        h = torch.exp(dt_t.unsqueeze(-1) * A) * h + (dt_t * x_t).unsqueeze(-1) * B_t.unsqueeze(-2)
        y.append((h * C_t.unsqueeze(-2)).sum(-1) + D * x_t)
    return torch.stack(y, dim=1)


def selective_scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Scan K independent sequences: (B, L, K, E) -> (B, L, K, E).

    x, dt (B, L, K, E); A (K, E, N), negative; B, C (B, L, K, N); D (K, E). All of one dtype, float32 or float64.
    Equal to `selective_scan_reference` to rounding, in values and gradients; not differentiable twice. The memory for
    the backward pass is one state per chunk of tokens, not one per token.
    """
    if x.is_meta:
        return torch.empty_like(x)  # counting costs needs the shape only
    return ChunkedScan.apply(x, dt, A, B, C, D)


class ChunkedScan(torch.autograd.Function):
    """The scan in chunks of tokens: states are laid out (chunk, B, K, N, E), so that one step of the recurrence is one
    `addcmul` on contiguous memory; the backward pass computes the states of a chunk again from the one before it."""

    @staticmethod
    def states(decay: Tensor, h: Tensor, before: Tensor, x: Tensor, dt: Tensor, At: Tensor, B: Tensor) -> None:
        """Fill decay and h, (T, B, K, N, E), for T tokens that follow the state `before`, (B, K, N, E)."""
        torch.mul(dt.unsqueeze(-2), At, out=decay).exp_()
        torch.mul((dt * x).unsqueeze(-2), B.unsqueeze(-1), out=h)
        for decay_t, h_t in zip(decay.unbind(0), h.unbind(0), strict=True):
            before = h_t.addcmul_(decay_t, before)

    @staticmethod
    def forward(ctx, x, dt, A, B, C, D):
        x, dt, B, C = (v.transpose(0, 1).contiguous() for v in (x, dt, B, C))  # (L, B, K, .)
        At = A.transpose(1, 2).contiguous()  # (K, N, E)
        length, batch, groups, channels = x.shape
        num_states = At.shape[1]
        state = (batch, groups, num_states, channels)
        # at least the square root of L, which keeps the boundaries and one chunk's states both small
        chunk = max(math.isqrt(length), min(length, CHUNK_BYTES // (math.prod(state) * x.element_size())))
        starts = range(0, length, chunk)
        y = torch.empty_like(x)
        boundaries = x.new_zeros(len(starts) + 1, *state)  # the state before each chunk
        decay, h = x.new_empty(chunk, *state), x.new_empty(chunk, *state)
        for k, s in enumerate(starts):
            e = min(length, s + chunk)
            decay_k, h_k = decay[: e - s], h[: e - s]
            ChunkedScan.states(decay_k, h_k, boundaries[k], x[s:e], dt[s:e], At, B[s:e])
            boundaries[k + 1] = h_k[-1]
            # products and sums, and not matrix products: so small ones are slower than two passes over memory
            torch.sum(torch.mul(h_k, C[s:e].unsqueeze(-1), out=decay_k), -2, out=y[s:e])
        ctx.save_for_backward(x, dt, At, B, C, D, boundaries)
        ctx.chunk = chunk
        return y.addcmul_(x, D).transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y):
        x, dt, At, B, C, D, boundaries = ctx.saved_tensors
        g = grad_y.transpose(0, 1).contiguous()
        length, chunk, state = x.shape[0], ctx.chunk, boundaries.shape[1:]
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
            ChunkedScan.states(decay_k, h_k[1:], h_k[0], x_k, dt_k, At, B[s:e])
            torch.sum(torch.mul(h_k[1:], g_k.unsqueeze(-2), out=work_k), -1, out=dC[s:e])
            # dh_t = g_t C_t + decay_(t+1) dh_(t+1)
            torch.mul(g_k.unsqueeze(-2), C[s:e].unsqueeze(-1), out=dh_k)
            behind = dh_k[-1].add_(carry)
            for t in reversed(range(e - s - 1)):
                behind = dh_k[t].addcmul_(decay_k[t + 1], behind)
            carry = decay_k[0] * dh_k[0]
            torch.sum(torch.mul(dh_k, (dt_k * x_k).unsqueeze(-2), out=work_k), -1, out=dB[s:e])
            du = torch.mul(dh_k, B[s:e].unsqueeze(-1), out=work_k).sum(-2)  # gradient of dt_t x_t, (T, B, K, E)
            ddecay = decay_k.mul_(dh_k).mul_(h_k[:-1])  # gradient of dt_t A, (T, B, K, N, E)
            dAt += torch.mul(ddecay, dt_k.unsqueeze(-2), out=work_k).sum((0, 1))
            dx[s:e] = du * dt_k + g_k * D
            ddt[s:e] = du * x_k + torch.mul(ddecay, At, out=work_k).sum(-2)
        dD = (g * x).sum((0, 1))
        return *(v.transpose(0, 1) for v in (dx, ddt)), dAt.transpose(1, 2), *(v.transpose(0, 1) for v in (dB, dC)), dD


class SSM(nn.Module):
    """The layer: channels-last map (B, h, w, E) -> (B, h, w, E), scanned row by row.

    bidirectional  scan forwards and backwards, each with parameters of its own, and average the two; else forwards only,
                   which makes the layer causal in row-major order

    Per direction E (2 R + 3 N + 2) parameters, with R = ceil(E / 16), and Mamba's own initial values. The scan runs in
    float32 at least, also under autocast: its state decays over many steps.
    """

    def __init__(self, channels: int, d_state: int, bidirectional: bool):
        super().__init__()
        self.bidirectional = bidirectional
        directions = 2 if bidirectional else 1
        self.rank = math.ceil(channels / 16)
        self.d_state = d_state
        self.x_proj = nn.Parameter(torch.empty(directions, channels, self.rank + 2 * d_state))  # W_delta, W_B, W_C
        self.dt_proj = nn.Parameter(torch.empty(directions, self.rank, channels))  # W_dt
        self.dt_bias = nn.Parameter(torch.empty(directions, channels))  # b
        self.A_log = nn.Parameter(torch.empty(directions, channels, d_state))  # A = -exp(A_log)
        self.D = nn.Parameter(torch.empty(directions, channels))
        for parameter in (self.A_log, self.D, self.dt_bias):
            parameter.no_weight_decay = True  # pyright: ignore[reportAttributeAccessIssue]

    def init_weights(self, generator: torch.Generator) -> None:
        """Mamba's: A = -(1..N), D = 1, steps log-uniform in [DT_MIN, DT_MAX] through the inverse of softplus."""
        bound = self.x_proj.shape[1] ** -0.5
        nn.init.uniform_(self.x_proj, -bound, bound, generator=generator)
        bound = self.rank**-0.5
        nn.init.uniform_(self.dt_proj, -bound, bound, generator=generator)
        low, high = math.log(DT_MIN), math.log(DT_MAX)
        steps = torch.exp(torch.rand(self.dt_bias.shape, generator=generator) * (high - low) + low)
        self.dt_bias.copy_(steps + torch.log(-torch.expm1(-steps)))
        self.A_log.copy_(torch.log(torch.arange(1.0, self.d_state + 1)).expand_as(self.A_log))
        nn.init.ones_(self.D)

    def forward(self, z: Tensor) -> Tensor:
        shape = z.shape
        with torch.autocast("cpu" if z.is_meta else z.device.type, enabled=False):
            z = z.flatten(1, 2).to(torch.promote_types(z.dtype, torch.float32))  # (B, L, E)
            x = torch.stack((z, z.flip(1)), dim=2) if self.bidirectional else z.unsqueeze(2)  # (B, L, K, E)
            projected = torch.einsum("blke,kec->blkc", x, self.x_proj)
            delta, B, C = projected.split((self.rank, self.d_state, self.d_state), dim=-1)
            dt = nn.functional.softplus(torch.einsum("blkr,kre->blke", delta, self.dt_proj) + self.dt_bias)
            y = selective_scan(x, dt, -torch.exp(self.A_log), B, C, self.D)
            if self.bidirectional:
                y = (y[:, :, 0] + y[:, :, 1].flip(1)) / 2
        return y.reshape(shape)

    def macs(self, tokens: int) -> int:
        """Multiply-accumulates of the scan for one image: 9 E N per token and direction, and E for D z (the count of
        Mamba's authors, state-spaces/mamba issue 110, which VMamba and its followers use). The projections are matrix
        products that any counter sees."""
        directions, channels = self.D.shape
        return directions * tokens * channels * (9 * self.d_state + 1)
