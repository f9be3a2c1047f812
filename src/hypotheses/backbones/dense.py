"""Any backbone as detection and segmentation want it: four maps, at strides 4, 8, 16 and 32, each with a LayerNorm.

A network of four stages has these maps already. A plain one, which has one map (ViT; MambaOut of a single stage), gets a simple
feature pyramid (ViTDet, arXiv 2203.16527, section 3): finer maps by transposed convolutions, coarser ones by max pooling, all
from that one map. The LayerNorm on every output is what the authors of MambaOut say that they used (yuweihao/MambaOut, issue
251), as in Swin's dense models.

B batch; H, W height and width of the image.
"""

import math

from torch import Tensor, nn

from hypotheses.backbones.mambaout import channels_first, channels_last
from hypotheses.backbones.norm import Norm

STRIDES = (4, 8, 16, 32)


class Dense(nn.Module):
    """Image (B, 3, H, W) -> four maps (B, C_i, H/s_i, W/s_i), s = STRIDES, C = `dims`.

    network  a backbone of backbones/__init__.py, whose maps have the STRIDES, or a single map whose stride is a power of two

    Raises ValueError on a network with other maps.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        dims, strides = list(network.dims), list(network.strides)  # pyright: ignore[reportArgumentType]
        self.network = network
        self.pyramid = None
        if len(dims) == 1 and math.log2(strides[0]).is_integer():
            self.pyramid = Pyramid(dims[0], strides[0])
            dims, strides = self.pyramid.dims, list(STRIDES)
        if tuple(strides) != STRIDES:
            raise ValueError(f"maps at strides {strides}: detection and segmentation need {list(STRIDES)}, or one map")
        self.dims, self.strides = dims, strides
        self.norms = nn.ModuleList(Norm(dim) for dim in dims)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        maps = self.network(image)
        if self.pyramid is not None:
            maps = self.pyramid(maps[0])
        return tuple(channels_first(norm(channels_last(x))) for norm, x in zip(self.norms, maps, strict=True))


class Pyramid(nn.Module):
    """One map (B, C, H/stride, W/stride) -> four, at STRIDES. Each finer map doubles height and width and halves the channels,
    once or several times, with LayerNorm and GELU between two times; `dims` are the channels."""

    def __init__(self, dim: int, stride: int):
        super().__init__()
        self.dims = [max(1, dim * min(target, stride) // stride) for target in STRIDES]
        self.scales = nn.ModuleList(self.scale(dim, stride, target) for target in STRIDES)

    @staticmethod
    def scale(dim: int, stride: int, target: int) -> nn.Module:
        if target >= stride:
            return nn.MaxPool2d(target // stride) if target > stride else nn.Identity()
        layers: list[nn.Module] = []
        while stride > target:
            if layers:
                layers += [ChannelNorm(dim), nn.GELU()]
            layers.append(nn.ConvTranspose2d(dim, dim // 2, kernel_size=2, stride=2))
            dim, stride = dim // 2, stride // 2
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [scale(x) for scale in self.scales]


class ChannelNorm(Norm):
    """LayerNorm over the channels of a map (B, C, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        return channels_first(super().forward(channels_last(x)))
