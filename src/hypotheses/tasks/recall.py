"""The positive control: selective copying along strips of digits (data/strips.py), trained as a classification is.

Every token is taught the class of the marked digit, and the last one alone is judged. So tokens beside the mark learn first, and
those farther off from what they pass on. (Taught at the last token only, mambaout_atto_ssm stayed at chance for eight epochs: 10.8 % on
seed 101, one run.)
"""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from hypotheses.tasks import Run, imagenet
from hypotheses.tasks.imagenet import Classification, curve, evaluate, fit, pictures, predictions, train, validate_some

__all__ = ["build", "curve", "evaluate", "fit", "pictures", "predictions", "train", "validate_some"]


def build(run: Run) -> imagenet.Job:
    return imagenet.build(run, Recall)


class Recall(Classification):
    """A classifier of every token of the last map, instead of their mean."""

    def loss(self, batch: Tensor, target: Tensor, smoothing: float) -> Tensor:
        logits = self.model.of_each_token(batch)  # (B, num_classes, h, w)
        wanted: Any = target[:, None, None].expand(-1, *logits.shape[2:])
        return F.cross_entropy(logits, wanted, label_smoothing=smoothing)

    def logits(self, batch: Tensor) -> Tensor:
        return self.model.of_each_token(batch)[..., -1, -1]
