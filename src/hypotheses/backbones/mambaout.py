"""MambaOut: stages of Gated CNN blocks, with a switch for what mixes tokens inside the block.

Paper: arXiv 2405.07992, Figure 4, Algorithm 1 and Table 4. Same layers, names and initialisation as yuweihao/MambaOut:
models/mambaout.py, so that its weights fit; the classification head stands at the end of this file.

B batch; H, W height and width of the image; h, w height and width in tokens; L = h * w tokens; C channels of a stage;
E channels that the mixer sees; N state size of the SSM.

The block (Algorithm 1), on channels-last maps (B, h, w, C):

    gate, rest, raw = split(fc1(norm(x)))              hidden = int(8/3 C) channels; raw has E = C of them (3/8)
    y = fc2(GELU(gate) * concat(rest, mix(raw)))       x + DropPath(y)

`mixer` chooses mix(z), and is all that two arms of a hypothesis differ in:

    conv         DWConv(z)                      Gated CNN, the official MambaOut (eq. 9)
    identity     z                              no token mixing: the negative control
    act          SiLU(DWConv(z))                eq. 11 without its SSM: the activation that the Gated CNN lacks
    ssm_causal   SSM(SiLU(DWConv(z)))           the Mamba block (eq. 11), scanned in row-major order
    ssm          the same, scanned forwards and backwards, averaged
    ssm_cross    the same, along rows and columns, both ways, averaged
    sham         `ssm` with its parameters and operations, but no memory: each token sees itself alone (ssm.py)
    sham_causal, sham_cross                     likewise of the other two
"""

import itertools

import torch
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from hypotheses.backbones.gate import conv_silu, gated, gated_conv
from hypotheses.backbones.norm import Norm
from hypotheses.backbones.products import Conv2d, Linear
from hypotheses.backbones.ssm import SSM

SCANS = {  # mixer: directions, memory
    "ssm_causal": (1, True),
    "ssm": (2, True),
    "ssm_cross": (4, True),
    "sham_causal": (1, False),
    "sham": (2, False),
    "sham_cross": (4, False),
}
MIXERS = ("conv", "identity", "act", *SCANS)


STEMS = {1: (1, 1), 2: (2, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4)}  # patch: strides of the stem's two convolutions


def conv(in_dim: int, out_dim: int, stride: int = 2) -> Conv2d:
    """3 x 3, the published one; at stride 4 5 x 5, so that no pixel is left out."""
    return Conv2d(in_dim, out_dim, kernel_size=max(3, stride + 1), stride=stride, padding=1)


def channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1)  # (B, C, h, w) -> (B, h, w, C)


def channels_first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)  # (B, h, w, C) -> (B, C, h, w)


class Stem(nn.Module):
    """(B, H, W, 3) -> (B, H/patch, W/patch, C), by two strided convolutions; the published patch is 4."""

    def __init__(self, dim: int, patch: int):
        super().__init__()
        self.conv1 = conv(3, dim // 2, STEMS[patch][0])
        self.norm1 = Norm(dim // 2)
        self.act = nn.GELU()
        self.conv2 = conv(dim // 2, dim, STEMS[patch][1])
        self.norm2 = Norm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm1(channels_last(self.conv1(channels_first(x)))))
        return self.norm2(channels_last(self.conv2(channels_first(x))))


class Downsample(nn.Module):
    """(B, h, w, C) -> (B, h/2, w/2, C'), between two stages."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.conv = conv(in_dim, out_dim)
        self.norm = Norm(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(channels_last(self.conv(channels_first(x))))


class GatedCNNBlock(nn.Module):
    """(B, h, w, C) -> (B, h, w, C). See the module's docstring; `expansion` is hidden / C, `kernel_size` that of DWConv."""

    def __init__(self, dim: int, mixer: str, d_state: int, kernel_size: int, expansion: float, drop_path: float):
        super().__init__()
        hidden = int(expansion * dim)
        self.mixer, self.dim = mixer, dim
        self.norm = Norm(dim, feeds_linear=True)
        self.fc1 = Linear(dim, 2 * hidden)
        if mixer != "identity":
            self.conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        if mixer in SCANS:
            self.ssm = SSM(dim, d_state, *SCANS[mixer])
        self.fc2 = Linear(hidden, dim)
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def gate(self, z: Tensor) -> Tensor:
        """GELU(gate) * concat(rest, mix(raw)) of z = [gate, rest, raw]: (B, h, w, 2 hidden) -> (B, h, w, hidden)."""
        if self.mixer == "conv":
            return gated_conv(z, self.conv)
        if self.mixer == "identity":
            return gated(z, z[..., -self.dim :])
        z, mixed = conv_silu(z, self.conv)
        return gated(z, mixed if self.mixer == "act" else self.ssm(mixed))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.fc2(self.gate(self.fc1(self.norm(x)))))


class MambaOut(nn.Module):
    """The backbone: (B, 3, H, W) -> a list of maps (B, C_i, H/s_i, W/s_i), finest first, s = patch, 2 patch, 4 patch, 8 patch.

    depths, dims  blocks and channels of each stage (Table 4); one stage makes an isotropic network
    patch         pixels of a token's side in the first stage, one of STEMS
    mixer         one of MIXERS
    mixer_stages  the stages, counted from 1, whose blocks have that mixer, the others the convolution; None is all
    d_state       N, used by the SSM mixers only
    kernel_size   of the depthwise convolution, odd
    expansion     hidden channels of a block as a multiple of its C, for a control that is matched in size
    drop_path     stochastic depth of the last block; the rate rises linearly from 0 over all blocks

    Raises ValueError on a value that makes no network.
    """

    def __init__(
        self,
        depths: list[int],
        dims: list[int],
        patch: int = 4,
        mixer: str = "conv",
        mixer_stages: list[int] | None = None,
        d_state: int = 16,
        kernel_size: int = 7,
        expansion: float = 8 / 3,
        drop_path: float = 0.0,
    ):
        super().__init__()
        if mixer not in MIXERS:
            raise ValueError(f"backbone.mixer={mixer!r}: choose one of {', '.join(MIXERS)}")
        if len(depths) != len(dims) or not dims:
            raise ValueError(
                f"backbone.depths has {len(depths)} stages and backbone.dims has {len(dims)}: give one each"
            )
        for key, value in (("depths", depths), ("dims", dims), ("d_state", [d_state]), ("kernel_size", [kernel_size])):
            if not all(isinstance(v, int) and v > 0 for v in value):
                raise ValueError(f"backbone.{key}: give whole numbers from 1, not {value}")
        if type(patch) is not int or patch not in STEMS:
            raise ValueError(f"backbone.patch={patch}: choose one of {', '.join(map(str, STEMS))}")
        stages = list(range(1, len(dims) + 1))
        if mixer_stages is not None and (not mixer_stages or set(mixer_stages) - set(stages)):
            raise ValueError(f"backbone.mixer_stages={mixer_stages}: give some of {stages}, or null for all")
        if kernel_size % 2 == 0:
            raise ValueError(f"backbone.kernel_size={kernel_size}: give an odd number, such as 7")
        if not isinstance(expansion, int | float) or expansion < 1:
            raise ValueError(f"backbone.expansion={expansion}: give a number from 1; the published one is 8/3")
        self.dims = list(dims)
        self.strides = [patch * 2**i for i in range(len(dims))]
        self.downsample_layers = nn.ModuleList(
            [Stem(dims[0], patch)] + [Downsample(a, b) for a, b in itertools.pairwise(dims)]
        )
        mixers = [mixer if mixer_stages is None or stage in mixer_stages else "conv" for stage in stages]
        rates = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(GatedCNNBlock(dim, mixed, d_state, kernel_size, expansion, next(rates)) for _ in range(depth))
            )
            for depth, dim, mixed in zip(depths, dims, mixers, strict=True)
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        x = channels_last(image)
        maps = []
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(downsample(x))
            maps.append(channels_first(x))
        return maps


class MambaOutHead(nn.Module):
    """The official classification head: last map (B, C, h, w) -> logits (B, num_classes).

    Mean over the tokens, LayerNorm, then an MLP of 4 C hidden channels with a LayerNorm before the last layer.
    """

    def __init__(self, dim: int, num_classes: int):
        super().__init__()
        self.norm = Norm(dim)
        self.fc1 = Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.norm2 = Norm(4 * dim)
        self.fc2 = Linear(4 * dim, num_classes)

    def forward(self, maps: list[Tensor]) -> Tensor:
        x = self.norm(maps[-1].mean(dim=(2, 3)))
        return self.fc2(self.norm2(self.act(self.fc1(x))))
