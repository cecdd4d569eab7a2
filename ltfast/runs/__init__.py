"""Restores runs from their checkpoints, classifies images with them, and analyses them."""

from ltfast.runs.classifier import Classifier, load

__all__ = ["Classifier", "load"]
