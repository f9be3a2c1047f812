"""Memory and time of a layer of attention and of an SSM against the length of the sequence, at equal width.

    python benchmarks/length.py [--lengths 64,256,1024,4096,16384] [--rounds 5] [--json results/measured/length.json]

The layers are the networks' own: attention of vit.py, fully visible and causal, with its projections; the SSM of ssm.py, in one direction
(causal) and in two. One sequence, float32, random input. At each length

    kept        bytes that a causal layer keeps of the sequence so far to go on with the next token: keys and values, or the state
    next token  the time of that token: the layers token by token, checked against the layers on the whole sequence
    forward     the time of the whole sequence
    training    the time of forward and backward, and the bytes that autograd keeps between them

Attention's kernel keeps no L x L matrix. Interleaved: every round runs each layer once; medians over the rounds, with their range.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from side_by_side import machine, measure
from torch import Tensor, nn
from torch.nn import functional as F

from hypotheses import cost
from hypotheses.allocator import keep_memory
from hypotheses.backbones import initialise
from hypotheses.backbones.ssm import SSM
from hypotheses.backbones.vit import Attention
from hypotheses.record import write_aside
from hypotheses.report import tables, wording

LENGTHS = (64, 256, 1024, 4096, 16384)
DIM, HEADS, STATES = 192, 3, 16  # of vit_tiny; N of the published Mamba blocks
LAYERS = ("attention, fully visible", "attention, causal", "SSM, causal", "SSM, both ways")
CAUSAL = ("attention, causal", "SSM, causal")


class Flat(nn.Module):
    """The SSM on a sequence (B, L, D), as a map of one row."""

    def __init__(self, ssm: SSM):
        super().__init__()
        self.ssm = ssm

    def forward(self, x: Tensor) -> Tensor:
        return self.ssm(x.unsqueeze(1)).squeeze(1)


def layers(dim: int, heads: int, states: int) -> dict[str, nn.Module]:
    made = (
        Attention(dim, heads, False),
        Attention(dim, heads, True),
        Flat(SSM(dim, states, 1)),
        Flat(SSM(dim, states, 2)),
    )
    for layer in made:
        initialise(layer, 0, "fan_in")
    return dict(zip(LAYERS, made, strict=True))


# ---- token by token --------------------------------------------------------------------------------------------------


class KeysAndValues:
    """Causal attention, given one token (1, D) after another: it keeps a key and a value of each."""

    def __init__(self, layer: Any):
        self.layer = layer
        self.k = self.v = torch.empty(layer.num_heads, 0, layer.proj.in_features // layer.num_heads)

    def take(self, tokens: Tensor) -> None:
        """Tokens (L, D) whose outputs are not asked for."""
        _, k, v = self.project(tokens)
        self.k, self.v = torch.cat((self.k, k), 1), torch.cat((self.v, v), 1)

    def project(self, tokens: Tensor) -> list[Tensor]:
        return list(self.layer.qkv(tokens).unflatten(-1, (3, self.layer.num_heads, -1)).permute(1, 2, 0, 3))

    def next(self, token: Tensor) -> Tensor:
        """The output of a token after all that were taken; it is not taken itself."""
        q, k, v = self.project(token)
        mixed = F.scaled_dot_product_attention(q, torch.cat((self.k, k), 1), torch.cat((self.v, v), 1))
        return self.layer.proj(mixed.transpose(0, 1).flatten(1))

    def kept(self) -> int:
        return self.k.nbytes + self.v.nbytes


class State:
    """The SSM in one direction, given one token (1, D) after another: it keeps N states per channel."""

    def __init__(self, layer: Any):
        self.ssm = layer.ssm
        self.A, self.h = -torch.exp(self.ssm.A_log[0]), torch.zeros_like(self.ssm.A_log[0])

    def take(self, tokens: Tensor) -> None:
        for token in tokens.split(1):
            self.h, _ = self.step(token)

    def step(self, token: Tensor) -> tuple[Tensor, Tensor]:
        """The state after a token, and C of that token."""
        ssm = self.ssm
        delta, B, C = (token @ ssm.x_proj[0]).split((ssm.rank, ssm.d_state, ssm.d_state), dim=-1)
        dt = F.softplus(delta @ ssm.dt_proj[0] + ssm.dt_bias[0]).T  # (D, 1)
        return torch.exp(dt * self.A) * self.h + dt * token.T * B, C

    def next(self, token: Tensor) -> Tensor:
        h, C = self.step(token)
        return (h @ C.T).T + self.ssm.D[0] * token

    def kept(self) -> int:
        return self.h.nbytes


def streams(made: dict[str, nn.Module]) -> dict[str, Any]:
    return dict(zip(CAUSAL, (KeysAndValues(made[CAUSAL[0]]), State(made[CAUSAL[1]])), strict=True))


# ---- measuring -------------------------------------------------------------------------------------------------------


def spread(seconds: list[float]) -> dict[str, float]:
    return {"median": statistics.median(seconds), "least": min(seconds), "most": max(seconds)}


def step(layer: nn.Module, x: Tensor) -> Callable[[], object]:
    parameters = list(layer.parameters())
    return lambda: torch.autograd.grad(layer(x).sum(), [x, *parameters])


def lengths_of(
    lengths: Sequence[int], rounds: int, dim: int = DIM, heads: int = HEADS, states: int = STATES, training: bool = True
) -> list[dict[str, Any]]:
    """A row for each length and layer: seconds as median, least and most over the rounds; bytes as they are."""
    made = layers(dim, heads, states)
    begun, taken, rows = streams(made), 0, []
    for length in sorted(lengths):
        x = torch.randn(1, length, dim, generator=torch.Generator().manual_seed(length))
        token = torch.randn(1, dim, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            for stream in begun.values():
                stream.take(x[0, taken:length])  # what they are given is no matter for time and bytes
            nexts = measure({name: partial(no_grad, s.next, token) for name, s in begun.items()}, rounds)
        taken = length
        forwards = measure({name: partial(no_grad, layer, x) for name, layer in made.items()}, rounds)
        steps, bytes_kept = {}, {}
        if training:
            wanted = x.clone().requires_grad_()
            bytes_kept = {name: cost.activation_bytes(layer, wanted) for name, layer in made.items()}
            steps = measure({name: step(layer, wanted) for name, layer in made.items()}, rounds)
        for name in LAYERS:
            row: dict[str, Any] = {
                "layer": name,
                "tokens": length,
            }
            row["forward_seconds"] = spread(forwards[name])
            if name in begun:
                row |= {"kept_bytes": begun[name].kept(), "next_token_seconds": spread(nexts[name])}
            if training:
                row |= {"training_seconds": spread(steps[name]), "training_bytes": bytes_kept[name]}
            rows.append(row)
    return rows


@torch.no_grad()
def no_grad(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return function(x)


def whole(dim: int, heads: int, states: int, rows: list[dict[str, Any]], rounds: int) -> dict[str, Any]:
    """What the JSON holds."""
    return {"dim": dim, "heads": heads, "states": states, "rounds": rounds, "machine": machine(), "rows": rows}


def unwritable(file: Path) -> str:
    """Why a file cannot be written, found out before the measurement; empty if it can. Makes its folder."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=file.parent):
            return "it is a folder" if file.is_dir() else ""
    except OSError as error:
        return error.strerror or str(error)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", help="a file to write; results/measured/length.json is shown by make report")
    asked = parser.parse_args()
    try:
        lengths = [int(length) for length in asked.lengths.split(",")]
    except ValueError:
        parser.error(f"--lengths {asked.lengths}: give numbers of tokens, as 64,256,1024")
    if min(lengths) < 1 or asked.rounds < 1 or asked.threads < 1:
        parser.error("--lengths, --rounds and --threads: give numbers from 1")
    if asked.json and (why := unwritable(Path(asked.json))):
        parser.error(f"--json {asked.json}: {why}: name a file in a folder that can be written to")
    torch.set_num_threads(asked.threads)
    keep_memory()
    found = whole(DIM, HEADS, STATES, lengths_of(lengths, asked.rounds), asked.rounds)
    shown = tables.length(found)
    print(wording.length(found), "", *cost.columns([shown.columns, *shown.rows]), sep="\n")
    if asked.json:
        write_aside(Path(asked.json), json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
