"""Exports a trained run as a program from the pixels of images to probabilities, and checks it against `predict`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils.data import default_collate
from torchvision.transforms import Resize

from ltfast.data.crops import CentreCrop
from ltfast.data.pillow_resize import PixelCrop, PixelResize
from ltfast.data.transforms import Convert, NormalizedTensor
from ltfast.engine.export import FACTS, export_predictor, save_program
from ltfast.errors import InputError
from ltfast.files import replace_file
from ltfast.runs.calibration import Calibration
from ltfast.runs.classifier import probabilities
from ltfast.runs.onnx_files import onnx_bytes, onnx_session
from ltfast.runs.restore import Trained
from ltfast.runs.views import Fit, Views

FORMATS = (".pt2", ".onnx")
TOLERANCE = 1e-4  # of a probability


class Exported(NamedTuple):
    """A run as a program.

    Attributes:
        program: from uint8 images (B, channels, H, W) of any size to probabilities (B, C) float32; or the raw form,
            from `views` tensors of normalised images (B, channels, size, size) to class scores (B, C).
        facts: what the file says about it, as plain values.
        raw: whether it is the raw form.
    """

    program: ExportedProgram
    facts: dict[str, Any]
    raw: bool


class PixelProgram(nn.Module):
    """From uint8 images (B, channels, H, W) to probabilities (B, C), with the preprocessing of the run.

    Args:
        trained: the run, whose predictor takes one view.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, trained: Trained) -> None:
        super().__init__()
        self.predictor = trained.predictor
        fits: list[nn.Module] = []
        transform: Any = trained.transforms[0]
        for step in (Fit(trained.facts).crop, *transform.transforms):
            if isinstance(step, CentreCrop):
                fits.append(PixelCrop(step.short, step.size))
            elif isinstance(step, Resize):
                fits.append(PixelResize(step.size[0]))
            elif isinstance(step, NormalizedTensor):
                self.register_buffer("scale", torch.from_numpy(step.scale))
                self.register_buffer("shift", torch.from_numpy(step.shift))
            elif step is not None and not isinstance(step, Convert):
                raise NotImplementedError(f"{type(step).__name__} has no form for tensors")
        self.fit = nn.Sequential(*fits)

    def forward(self, images: Tensor) -> Tensor:
        pixels = self.fit(images.double()).float()
        scores = self.predictor.predict(pixels * self.scale + self.shift).float()
        return (self.predictor.score_scale * scores).softmax(1)


def export_run(trained: Trained, calibration: Calibration | None, *, raw: bool) -> Exported:
    """Export a run, on the CPU.

    Args:
        trained: the run, calibrated if there is a calibration; adapted if it learns from test images.
        calibration: is described in the facts.
        raw: see `Exported`.

    Raises:
        InputError: the run predicts from several random views of an image, and the form is not raw.
    """
    facts, predictor = trained.facts, trained.predictor.eval()
    shape = (facts["channels"], trained.image_size, trained.image_size)
    about = {
        **{name: facts[name] for name in ("class_names", "mean", "std")},
        "image_shape": list(shape),
        "views": predictor.views,
        "input": "normalised float32 images" if raw else "uint8 images of any size",
        "output": "class scores" if raw else "probabilities",
        "calibration": None if calibration is None else calibration.content["method"],
    }
    if raw:
        return Exported(export_predictor(predictor, shape), about, raw)
    if predictor.views > 1:
        raise InputError(
            "expected average, since with instance the weights of the sub-models come from random views of an image, "
            "which a program does not draw; or use --raw",
            name="aggregate",
        )
    batch, height, width = Dim("batch"), Dim("height"), Dim("width")
    images = torch.zeros(2, facts["channels"], trained.image_size + 5, trained.image_size + 9, dtype=torch.uint8)
    with torch.no_grad():
        program = torch.export.export(
            PixelProgram(trained).eval(),
            (images,),
            dynamic_shapes=({0: batch, 2: height, 3: width},),
            strict=False,  # as in `export_predictor`
        )
    return Exported(program, about, raw)


def write_export(path: Path, exported: Exported, trained: Trained) -> str:
    """Check a program, and write it to a file; the ending is one of `FORMATS`.

    Returns:
        How it was checked, in words.

    Raises:
        PackageError: the packages for `.onnx` are not installed.
        InputError: the program is too large for a `.onnx` file.
        RuntimeError: the program does not agree with `predict`.
        OSError: the file cannot be written.
    """
    if path.suffix == ".pt2":
        checked = check_program(exported, trained, exported.program.module())
        save_program(path, exported.program, exported.facts)
        return checked
    views = ["images"] if exported.facts["views"] == 1 else ["images", "first_view", "second_view"]
    content = onnx_bytes(
        exported.program,
        inputs=views,
        output="scores" if exported.raw else "probabilities",
        axes=("batch",) if exported.raw else ("batch", "channels", "height", "width"),
        metadata={FACTS: json.dumps(exported.facts), "class_names": json.dumps(exported.facts["class_names"])},
    )
    session = onnx_session(content)
    checked = "not checked, since onnxruntime is not installed"
    if session is not None:
        checked = f"{check_program(exported, trained, session)} in onnxruntime"
    replace_file(path, lambda file: file.write(content))
    return checked


@torch.no_grad()
def check_program(exported: Exported, trained: Trained, program: Callable[..., Tensor]) -> str:
    """Compare a program with `predict`, on random images of several sizes.

    Args:
        exported, trained: what is exported.
        program: from the inputs to the output.

    Returns:
        The result in words.

    Raises:
        RuntimeError: a probability differs by more than `TOLERANCE`.
    """
    predictor = trained.predictor
    worst = 0.0
    for batch in _batches(trained):
        views = default_collate([Views(trained)(image, 0) for image in batch])
        expected = probabilities(predictor, views)
        if exported.raw:
            scores = program(*(view[:, 0].contiguous() for view in views[: predictor.views]))
            found = (predictor.score_scale * scores.double()).softmax(1)
        else:
            pixels = np.stack([_pixels(image, trained.facts["channels"]) for image in batch])
            found = program(torch.from_numpy(pixels)).double()
        worst = max(worst, (found - expected).abs().max().item())
    if not worst <= TOLERANCE:
        raise RuntimeError(f"the exported program's probabilities differ by {worst:.3g} from those of predict")
    return f"agrees with predict to {worst:.1g}"


def _batches(trained: Trained) -> list[list[Image.Image]]:
    """Random images, RGB, in batches of one size each: square, wide, tall, very wide, smaller than the network's."""
    size, random = trained.image_size, np.random.default_rng(0)
    sizes = [(size, size), (size + 3, 2 * size + 1), (3 * size, size + 1), (size, 5 * size), (size // 2 + 1, size)]
    batches = []
    for height, width in sizes:
        pixels = random.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
        if trained.facts["channels"] == 1:
            pixels[...] = pixels[..., :1]
        batches.append([Image.fromarray(one) for one in pixels])
    return batches


def _pixels(image: Image.Image, channels: int) -> NDArray[np.uint8]:
    """(channels, H, W)."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)[:channels])
