"""The selective state space model (S6) as a layer that mixes the tokens of a map. The scan itself stands in scan.py.

Papers: Mamba, arXiv 2312.00752, section 3.5; two directions as in Vim, arXiv 2401.09417, four as in VMamba, arXiv
2401.10166, averaged here instead of summed. Per direction, for tokens z in the order of that direction:

    dt = softplus(W_dt W_delta z + b)      B = W_B z      C = W_C z          "selective": they depend on z
    y  = scan(z, dt, A, B, C, D)

B batch; h, w height and width in tokens; L = h w; K directions; E channels; N states per channel; R rank of dt.
"""

import functools
import math

import torch
from torch import Tensor, nn

from hypotheses.backbones.scan import selective_scan

DT_MIN, DT_MAX = 1e-3, 1e-1  # range of the initial step sizes (Mamba, section 3.6)
DIRECTIONS = ("rows", "rows reversed", "columns", "columns reversed")


class SSM(nn.Module):
    """Channels-last map (B, h, w, E) -> (B, h, w, E).

    directions  how many of DIRECTIONS are scanned and averaged, each with parameters of its own: 1 makes the layer causal
                in row-major order, 2 is bidirectional, 4 the cross-scan
    memory      False makes the sham: the same parameters and operations, but each token sees itself alone (scan.py)

    Per direction E (2 R + 3 N + 2) parameters, with R = ceil(E / 16), and Mamba's own initial values. The scan runs in
    float32 at least, also under autocast: its state decays over many steps.
    """

    def __init__(self, channels: int, d_state: int, directions: int, memory: bool = True):
        super().__init__()
        self.directions, self.memory = directions, memory
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
        for weight, inputs in ((self.x_proj, self.x_proj.shape[1]), (self.dt_proj, self.rank)):
            bound = inputs**-0.5
            weight.copy_(nn.init.uniform_(torch.empty(weight.shape), -bound, bound, generator=generator))
        low, high = math.log(DT_MIN), math.log(DT_MAX)
        steps = torch.exp(torch.rand(self.dt_bias.shape, generator=generator) * (high - low) + low)
        self.dt_bias.copy_(steps + torch.log(-torch.expm1(-steps)))
        self.A_log.copy_(torch.log(torch.arange(1.0, self.d_state + 1)).expand_as(self.A_log))
        nn.init.ones_(self.D)

    def forward(self, z: Tensor) -> Tensor:
        batch, height, width, channels = z.shape
        dtype = torch.promote_types(z.dtype, torch.float32)
        with torch.autocast("cpu" if z.is_meta else z.device.type, enabled=False):
            x_proj, dt_proj, dt_bias, A_log, D = (
                p.to(dtype) for p in (self.x_proj, self.dt_proj, self.dt_bias, self.A_log, self.D)
            )
            x = z.flatten(1, 2).to(dtype)  # (B, L, E)
            # what a token makes of itself does not depend on the order: one product for all directions
            projected = torch.matmul(x, x_proj.transpose(0, 1).flatten(1)).unflatten(-1, (self.directions, -1))
            delta, B, C = projected.split((self.rank, self.d_state, self.d_state), dim=-1)  # (B, L, K, .)
            dt = torch.bmm(delta.flatten(0, 1).transpose(0, 1), dt_proj)  # (K, B L, E), before the softplus
            dt = dt.view(self.directions, batch, height * width, channels).permute(1, 2, 0, 3)  # (B, L, K, E)
            orders = None if self.directions == 1 else scan_orders(self.directions, height, width, z.device)
            y = selective_scan(x, dt, -torch.exp(A_log), B, C, D, dt_bias, orders, self.memory)
        return y.view(z.shape)

    def macs(self, tokens: int) -> int:
        """Multiply-accumulates of the scan for one image: 9 E N per token and direction, and E for D z (the count of
        Mamba's authors, state-spaces/mamba issue 110, which VMamba and its followers use). The projections are matrix
        products that any counter sees."""
        directions, channels = self.D.shape
        return directions * tokens * channels * (9 * self.d_state + 1)


@functools.lru_cache(maxsize=64)
def scan_orders(directions: int, height: int, width: int, device: torch.device) -> Tensor:
    """The tokens of a height x width map in the order in which each direction visits them: (directions, L) int32."""
    rows = torch.arange(height * width, dtype=torch.int32, device=device)
    columns = rows.view(height, width).t().reshape(-1)
    return torch.stack((rows, rows.flip(0), columns, columns.flip(0)))[:directions].contiguous()
