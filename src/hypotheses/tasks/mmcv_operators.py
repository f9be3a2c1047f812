"""mmcv's compiled operators without compiling them: the two that Mask R-CNN needs, NMS and RoIAlign, are torchvision's too.

mmdet imports `mmcv.ops`, which wants the extension module `mmcv._ext`, and the wheel of mmcv does not have one. `install` puts
a module of that name in its place: `nms`, `roi_align_forward` and `roi_align_backward` go to torchvision, on a CPU and on a
GPU, and any other operator raises an error when it is called. A real extension, where there is one, is left alone.
"""

import importlib.machinery
import importlib.util
import sys
import types
from typing import Any, NoReturn

import torch
from torch import Tensor
from torchvision import ops

from hypotheses.errors import UserError

NAME = "mmcv._ext"


def install() -> None:
    """Before anything imports mmcv.ops, mmdet or mmseg; calling it again does no harm."""
    if NAME in sys.modules or importlib.util.find_spec(NAME) is not None:
        return
    sys.modules[NAME] = Operators(NAME, __doc__)
    sys.modules[NAME].__spec__ = importlib.machinery.ModuleSpec(NAME, None)  # mmengine asks for it


class Operators(types.ModuleType):
    """In place of mmcv's extension: mmcv asks at import whether each operator is there, and for none of them more than that."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what Python asks of any module
            raise AttributeError(name)

        def missing(*_: Any, **__: Any) -> NoReturn:
            raise UserError(
                f"mmcv's operator {name} is not in this installation, which has NMS and RoIAlign from torchvision only: "
                f"choose a model without it, or install mmcv with its compiled operators (MMCV_WITH_OPS=1)"
            )

        return missing

    @staticmethod
    def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
        """Indices of the boxes (n, 4) that are kept, best first. `offset` 1 counts a box's last pixel in its size."""
        if offset:
            boxes = torch.cat((boxes[:, :2], boxes[:, 2:] + offset), 1)
        return ops.nms(boxes, scores, iou_threshold)

    @staticmethod
    def roi_align_forward(
        input: Tensor, rois: Tensor, output: Tensor, argmax_y: Tensor, argmax_x: Tensor, **window: Any
    ) -> None:
        """Write RoIAlign of input (B, C, h, w) in the rois (n, 5) into output (n, C, aligned_height, aligned_width)."""
        output.copy_(roi_align(input, rois, **window))

    @staticmethod
    def roi_align_backward(
        grad_output: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor, grad_input: Tensor, **window: Any
    ) -> None:
        """Write the gradient of input. RoIAlign is linear in its input, so any input of that shape has the same."""
        with torch.enable_grad():
            zeros = torch.zeros_like(grad_input, requires_grad=True)
            output = roi_align(zeros, rois, **window)
        grad_input.copy_(torch.autograd.grad(output, zeros, grad_output)[0])


def roi_align(
    input: Tensor,
    rois: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> Tensor:
    """torchvision's, with the arguments that mmcv gives to its own."""
    if pool_mode != 1:
        raise UserError(
            "RoIAlign with pool_mode=max is not in torchvision: use pool_mode=avg, or mmcv's compiled operators"
        )
    # the operator itself: where deterministic algorithms are asked for, ops.roi_align puts Python in the place of its CUDA kernel.
    # It takes both of one type, and on a CPU knows no bfloat16
    kind = torch.float32 if input.dtype == torch.bfloat16 else input.dtype
    return torch.ops.torchvision.roi_align(
        input.to(kind), rois.to(kind), spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned
    ).to(input.dtype)
