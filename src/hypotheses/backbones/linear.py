"""A Linear layer on channels-last maps that takes the faster of PyTorch's two matrix products.

torch's Linear uses MKL in float32 on a CPU, which runs at less than half speed on processors that are not Intel's; its 1 x 1
convolution is the same product by oneDNN, which does not (benchmarks/backbone.py shows the difference). Under bfloat16 both
are oneDNN's.
"""

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hypotheses.backbones import kernels


class Linear(nn.Linear):
    """(B, h, w, C) -> (B, h, w, C')."""

    def forward(self, x: Tensor) -> Tensor:
        if not by_convolution(x):
            return super().forward(x)
        return F.conv2d(x.permute(0, 3, 1, 2), self.weight[:, :, None, None], self.bias).permute(0, 2, 3, 1)


def by_convolution(x: Tensor) -> bool:
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and x.ndim == 4 and not torch.is_autocast_enabled("cpu")
    return plain and slow_mkl()


@functools.cache
def slow_mkl() -> bool:
    """Whether this is a processor on which MKL takes its slow way."""
    return torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available() and "AMD" in kernels.processor()
