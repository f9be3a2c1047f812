"""NMS and RoIAlign of mmcv by torchvision: values, gradients, and what is said of other operators."""

import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from torchvision import ops

from hypotheses.errors import UserError
from hypotheses.tasks import mmcv_operators

mmcv_operators.install()
from mmcv.ops import (  # noqa: E402
    RoIAlign,
    batched_nms,
    deform_conv2d,
    nms,
    roi_align,
)


def boxes(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(count)
    corner, size = 40 * torch.rand(count, 2, generator=g), 2 + 20 * torch.rand(count, 2, generator=g)
    return torch.cat((corner, corner + size), 1), torch.rand(count, generator=g)


def suppressed(of: np.ndarray, scores: np.ndarray, threshold: float, offset: int) -> list[int]:
    """NMS by its definition, box by box."""
    kept: list[int] = []
    for i in np.argsort(-scores):
        for j in kept:
            low, high = np.maximum(of[i, :2], of[j, :2]), np.minimum(of[i, 2:], of[j, 2:])
            inside = np.prod(np.clip(high - low + offset, 0, None))
            areas = [np.prod(of[k, 2:] - of[k, :2] + offset) for k in (i, j)]
            if inside / (sum(areas) - inside) > threshold:
                break
        else:
            kept.append(int(i))
    return kept


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("count", [0, 1, 60])
def test_nms(count, offset):
    of, scores = boxes(count)
    found, kept = nms(of, scores, 0.3, offset=offset)
    assert kept.tolist() == suppressed(of.numpy(), scores.numpy(), 0.3, offset)
    assert torch.equal(found, torch.cat((of, scores[:, None]), 1)[kept])
    assert count < 2 or 1 < len(kept) < count


def test_nms_within_classes():
    of, scores = boxes(60)
    classes = torch.arange(60) % 3
    _, kept = batched_nms(of, scores, classes, {"type": "nms", "iou_threshold": 0.3})
    assert set(kept.tolist()) == set(ops.batched_nms(of, scores, classes, 0.3).tolist())


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("size", [7, (3, 5)])
def test_roi_align(size, sampling_ratio, aligned):
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    of, _ = boxes(9)
    rois = torch.cat((torch.arange(9.0).remainder(2)[:, None], of), 1).double()
    found = roi_align(x, rois, size, 0.25, sampling_ratio, "avg", aligned)
    true = ops.roi_align(x, rois, size, 0.25, sampling_ratio, aligned)
    weight = torch.randn_like(true)
    assert torch.equal(found, true) and found.abs().sum() > 0
    gradients = [torch.autograd.grad(y, x, weight)[0] for y in (found, true)]
    assert torch.equal(*gradients) and gradients[0].abs().sum() > 0
    assert torch.autograd.gradcheck(lambda x: roi_align(x, rois, size, 0.25, sampling_ratio, "avg", aligned), x)


def test_no_rois():
    x = torch.randn(1, 2, 8, 8, requires_grad=True)
    found = RoIAlign(7, 1.0)(x, torch.zeros(0, 5))
    assert found.shape == (0, 2, 7, 7)
    found.sum().backward()
    assert x.grad is not None and not x.grad.any()


def test_another_operator_is_named_with_the_remedy():
    with pytest.raises(UserError, match=r"mmcv's operator deform_conv_forward is not .*\(MMCV_WITH_OPS=1\)"):
        deform_conv2d(torch.randn(1, 2, 8, 8), torch.zeros(1, 18, 6, 6), torch.randn(2, 2, 3, 3))
    with pytest.raises(UserError, match="pool_mode=avg"):
        roi_align(torch.randn(1, 2, 8, 8), torch.zeros(1, 5), 7, 1.0, 0, "max")


def test_a_real_extension_is_left_alone(monkeypatch):
    real = types.ModuleType(mmcv_operators.NAME)
    monkeypatch.setitem(sys.modules, mmcv_operators.NAME, real)
    mmcv_operators.install()
    assert sys.modules[mmcv_operators.NAME] is real


def test_mmdet_and_mmseg_can_be_imported():
    program = "from hypotheses.tasks import mmcv_operators as m; m.install(); import mmdet.apis, mmseg.apis"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
