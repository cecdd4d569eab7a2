"""Exports a trained model as a PyTorch program, which runs without ltfast and timm."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ltfast.engine.stage import Predictor
from ltfast.files import replace_file

FACTS = "ltfast.json"  # in the file, beside the program


class Prediction(nn.Module):
    """A module whose `forward` is `predict`: maps `predictor.views` tensors of images (B, channels, H, W) to class
    scores (B, C)."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.predictor = predictor

    def forward(self, *views: Tensor) -> Tensor:
        return self.predictor.predict(*views)


def export_predictor(predictor: Predictor, image_shape: Sequence[int]) -> ExportedProgram:
    """Export `predictor.predict` for batches of any size.

    Args:
        predictor: trained, on the CPU, and adapted if it learns from test images. It is put into evaluation mode.
        image_shape: (channels, H, W).

    Returns:
        A program from `predictor.views` tensors of images (B, channels, H, W) to class scores (B, C), float32.
    """
    batch = Dim("batch")
    views = [torch.zeros(2, *image_shape) for _ in range(predictor.views)]
    with torch.no_grad():
        return torch.export.export(
            Prediction(predictor).eval(),
            tuple(views),
            dynamic_shapes=(tuple({0: batch} for _ in views),),
            strict=False,  # the default since PyTorch 2.7: tensors are traced, not Python's bytecode
        )


def save_program(path: Path, program: ExportedProgram, facts: Mapping[str, Any]) -> None:
    """Write a program for `torch.export.load`, with facts about its input and output as JSON in `ltfast.json`.

    Raises:
        OSError: the file cannot be written.
    """
    extra = {FACTS: json.dumps(facts)}
    replace_file(path, lambda file: torch.export.save(program, file, extra_files=extra))
