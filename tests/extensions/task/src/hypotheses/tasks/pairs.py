"""Left or right: pairs of digits (data/pairs.py), classified by the mean over tokens."""

from hypotheses.tasks.imagenet import build, curve, evaluate, fit, pictures, predictions, train, validate_some

__all__ = ["build", "curve", "evaluate", "fit", "pictures", "predictions", "train", "validate_some"]
