"""PoolFormer: a Transformer block in which the mean over a token's neighbours stands where attention would.

Paper: arXiv 2111.11418, Algorithm 1 and Figure 2; here with one stage, for the demo.
B batch; H, W of the image; h, w in tokens; C channels.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth


class PoolBlock(nn.Module):
    """(B, h, w, C) -> (B, h, w, C). The mixer is the mean over pool x pool tokens less the token itself, which for 1
    is nothing: then the block has no mixer."""

    def __init__(self, dim: int, pool: int, drop_path: float):
        super().__init__()
        self.pool = pool
        if pool > 1:
            self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def mix(self, x: Tensor) -> Tensor:
        y = x.permute(0, 3, 1, 2)  # (B, h, w, C) -> (B, C, h, w)
        y = F.avg_pool2d(y, self.pool, stride=1, padding=self.pool // 2, count_include_pad=False)
        return y.permute(0, 2, 3, 1) - x

    def forward(self, x: Tensor) -> Tensor:
        if self.pool > 1:
            x = x + self.drop_path(self.mix(self.norm1(x)))
        return x + self.drop_path(self.fc2(F.gelu(self.fc1(self.norm2(x)))))


class PoolFormer(nn.Module):
    """The backbone: (B, 3, H, W) -> [one map (B, C, H/4, W/4)].

    pool       tokens per side of the mean, odd
    drop_path  stochastic depth of the last block; the rate rises linearly from 0 over all blocks

    Raises ValueError on a value that makes no network.
    """

    def __init__(self, dim: int, depth: int, pool: int = 3, drop_path: float = 0.0):
        super().__init__()
        if pool < 1 or pool % 2 == 0:
            raise ValueError(f"backbone.pool={pool}: give an odd number, such as 3")
        self.dims, self.strides = [dim], [4]
        self.stem = nn.Conv2d(3, dim, kernel_size=7, stride=4, padding=2)
        rates = torch.linspace(0, drop_path, depth, device="cpu").tolist()
        self.blocks = nn.Sequential(*(PoolBlock(dim, pool, rate) for rate in rates))

    def forward(self, image: Tensor) -> list[Tensor]:
        x = self.stem(image).permute(0, 2, 3, 1)  # (B, C, h, w) -> (B, h, w, C)
        return [self.blocks(x).permute(0, 3, 1, 2)]


class PoolFormerHead(nn.Module):
    """LayerNorm of the mean over tokens, linear layer: last map (B, C, h, w) -> logits (B, num_classes)."""

    def __init__(self, dim: int, num_classes: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc = nn.Linear(dim, num_classes)

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.fc(self.norm(maps[-1].mean(dim=(2, 3))))
