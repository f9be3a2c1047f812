"""ViT in the shapes of DeiT; `causal=True` masks the attention and changes nothing else, `attention=False` masks all but the
token itself: the negative control, which mixes no tokens.

Papers: arXiv 2010.11929 and 2012.12877 (DeiT, without its class and distillation tokens). The read-out is the mean over
tokens in both arms: a class token in front of a causal sequence would see nothing but itself.

B batch; H, W of the image; h, w in patches; L = h * w tokens; C channels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from hypotheses.backbones.products import Conv2d, Linear, attention

EPS = 1e-6  # of every LayerNorm, as in DeiT


class Attention(nn.Module):
    """(B, L, C) -> (B, L, C). With `causal`, token i sees tokens 0..i of the row-major order (paper, eq. 5); without `attention`
    only itself, so that its value is all that is left (query and key keep their weights, without a use)."""

    def __init__(self, dim: int, num_heads: int, causal: bool, attention: bool = True):
        super().__init__()
        self.num_heads, self.causal, self.attention = num_heads, causal, attention
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        )  # each (B, heads, L, C/heads)
        mixed = attention(q, k, v, self.causal) if self.attention else v
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A pre-norm Transformer block with an MLP ratio of 4: (B, L, C) -> (B, L, C)."""

    def __init__(self, dim: int, num_heads: int, causal: bool, attention: bool, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = Attention(dim, num_heads, causal, attention)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.fc1 = Linear(dim, 4 * dim)
        self.act = nn.GELU()
        self.fc2 = Linear(4 * dim, dim)
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.fc2(self.act(self.fc1(self.norm2(x)))))


class ViT(nn.Module):
    """The backbone: (B, 3, H, W) -> [one map (B, C, H/patch, W/patch)]; H and W must be multiples of the patch.

    grid       patches per side for which position embeddings are learned (14 for 224 pixels and patch 16); other sizes
               are interpolated bicubically
    drop_path  stochastic depth of the last block; the rate rises linearly from 0 over all blocks
    """

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        patch: int = 16,
        grid: int = 14,
        causal: bool = False,
        attention: bool = True,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.dims, self.strides = [dim], [patch]
        self.patch_embed = Conv2d(3, dim, kernel_size=patch, stride=patch)
        self.pos_embed = nn.Parameter(torch.zeros(1, dim, grid, grid))
        rates = torch.linspace(0, drop_path, depth, device="cpu").tolist()
        self.blocks = nn.Sequential(*(Block(dim, num_heads, causal, attention, rate) for rate in rates))

    def init_weights(self, generator: torch.Generator) -> None:
        drawn = nn.init.trunc_normal_(torch.empty(self.pos_embed.shape), std=0.02, generator=generator)
        self.pos_embed.copy_(drawn)

    def positions(self, h: int, w: int) -> Tensor:
        """Position embeddings for h x w patches: (1, C, h, w)."""
        if self.pos_embed.shape[-2:] == (h, w):
            return self.pos_embed
        return F.interpolate(self.pos_embed, size=(h, w), mode="bicubic", antialias=True)

    def forward(self, image: Tensor) -> list[Tensor]:
        patch = self.strides[0]
        if image.shape[-2] % patch or image.shape[-1] % patch:
            raise ValueError(f"image of {image.shape[-2]} x {image.shape[-1]} pixels: ViT needs multiples of {patch}")
        x = self.patch_embed(image)
        h, w = x.shape[-2:]
        x = (x + self.positions(h, w)).flatten(2).transpose(1, 2)  # (B, C, h, w) -> (B, L, C)
        return [self.blocks(x).transpose(1, 2).unflatten(2, (h, w))]


class ViTHead(nn.Module):
    """Mean over tokens, LayerNorm, linear layer: last map (B, C, h, w) -> logits (B, num_classes)."""

    def __init__(self, dim: int, num_classes: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.fc = Linear(dim, num_classes)

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.fc(self.norm(maps[-1].mean(dim=(2, 3))))
