"""The weights of a classifier from texts: the embeddings of the classes' names (`--class-text`).

Shi et al., "Long-Tail Learning with Foundation Model: Heavy Fine-Tuning Hurts", ICML 2024, section 4: a text encoder
that was trained together with the backbone gives a vector for each class, which the transpose of the backbone's
projection maps to its features.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ltfast.data.files import check_file
from ltfast.errors import InputError
from ltfast.methods.settings import BackboneSettings
from ltfast.methods.weights_file import read_weights
from ltfast.ops.core.warn import warn_caller

if TYPE_CHECKING:
    from ltfast.data import DataBundle

NAMES = "names"  # the value that encodes the names of the classes, instead of a file
TEMPLATE = "a photo of a {}."  # of the authors
_BATCH = 256  # texts
_SHOWN = 3  # at most this many names in a message


def text_head(source: str, settings: BackboneSettings, bundle: "DataBundle", width: int) -> Tensor:
    """The weights of a cosine classifier from texts, for features of a backbone with pretrained weights.

    Args:
        source: a file, see `read_class_vectors`; or "names", see `encode_class_names`.
        settings: the backbone and its weights.
        bundle: the classes.
        width: the width D of the backbone's features.

    Returns:
        (C, D) float32, of length 1.

    Raises:
        InputNotFoundError, InputError: there are no vectors for the classes; the message says why.
    """
    import timm

    from ltfast.models.text_projection import text_projection

    names, backbone = bundle.class_names, settings.backbone
    if source != NAMES:
        vectors = read_class_vectors(Path(source), names)
    elif bundle.named:
        config = timm.get_pretrained_cfg(backbone, allow_unregistered=True)
        vectors = encode_class_names(names, None if config is None else config.hf_hub_id, backbone)
    else:
        problem = "expected a file of embeddings, since the classes are only numbered; --class-names FILE names them"
        raise InputError(problem, name="class_text")
    state = None if settings.weights is None else read_weights(Path(settings.weights))
    return class_weights(vectors, names, width, text_projection(backbone, state))


def read_class_vectors(path: Path, class_names: Sequence[str]) -> Tensor:
    """Read a vector for each class.

    Args:
        path: a `.safetensors`, `.npy`, `.npz` or `.pt` file with floating-point numbers: a vector (D,) by each class's
            name, or one matrix (C, D) with a row for each class in the order of `class_names`. Nothing in it is
            unpickled but tensors and plain containers.
        class_names: the names of the C classes.

    Returns:
        (C, D) float32.

    Raises:
        InputNotFoundError: there is no such file.
        InputError: the file cannot be read, or a class has no valid vector; the message names it.
    """
    path = path.expanduser()
    check_file("class_text", path)
    content = _content(path)
    if isinstance(content, Mapping) and len(content) == 1 and next(iter(content.values())).dim() == 2:
        (content,) = content.values()
    if isinstance(content, Tensor):
        if content.dim() != 2 or len(content) != len(class_names):
            raise _wrong(path, f"shape {tuple(content.shape)}", f"a row for each of the {len(class_names)} classes")
        rows = list(content)
    else:
        if missing := [name for name in class_names if name not in content]:
            found = f"{len(content)} vectors, the first by the name {next(iter(content))!r}" if content else "none"
            raise InputError(f"expected a vector for each class, got none for {_some(missing)} in {path}, which has "
                             f"{found}", name="class_text")  # fmt: skip
        rows = [content[name] for name in class_names]
    for name, row in zip(class_names, rows, strict=True):
        if row.dim() != 1 or row.shape != rows[0].shape or not row.is_floating_point():
            expected = f"floating-point vectors of one width, as {tuple(rows[0].shape)} of class {class_names[0]!r}"
            raise _wrong(path, f"{tuple(row.shape)} {row.dtype} for class {name!r}", expected)
        if not row.isfinite().all():
            raise _wrong(path, f"NaN or infinity for class {name!r}", "finite numbers")
        if not row.any():
            raise _wrong(path, f"zeros for class {name!r}", "vectors that have a direction")
    return torch.stack(rows).float()


def encode_class_names(class_names: Sequence[str], repository: str | None, backbone: str) -> Tensor:
    """The embeddings of the texts "a photo of a {name}.", by the text encoder of a CLIP model, from open_clip.

    Args:
        class_names: the names of the C classes; underscores become spaces.
        repository: the model on the Hugging Face Hub; None if the backbone is from elsewhere.
        backbone: the backbone's name, for the messages.

    Returns:
        (C, D) float32, of length 1.

    Raises:
        InputError: open_clip is not installed, or the model is not available.
    """
    remedy = "or give a file of embeddings, which docs/vision_transformers.md shows how to make on another machine"
    try:
        import open_clip
    except ImportError as error:
        raise InputError(
            f"encoding the names of the classes needs open_clip: pip install open_clip_torch; {remedy}",
            name="class_text",
        ) from error
    if repository is None:
        raise InputError(f"expected a file of embeddings, since the weights of {backbone} are not from the Hugging "
                         "Face Hub, which has its text encoder", name="class_text")  # fmt: skip
    try:
        _check_available(repository)
        model = open_clip.create_model(f"hf-hub:{repository}").eval()
        tokenize = open_clip.get_tokenizer(f"hf-hub:{repository}")
    except Exception as error:  # of any type: the repository may be missing, or without a text encoder
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
        raise InputError(
            f"open_clip cannot load the text encoder of {backbone} from {repository} of the Hugging Face Hub: "
            f"{reason}; {remedy}",
            name="class_text",
        ) from error
    texts = [TEMPLATE.format(name.replace("_", " ")) for name in class_names]
    with torch.no_grad():
        parts = [model.encode_text(tokenize(texts[i : i + _BATCH])) for i in range(0, len(texts), _BATCH)]
    return F.normalize(torch.cat(parts).float(), dim=-1)


def class_weights(vectors: Tensor, class_names: Sequence[str], width: int, projection: Tensor | None) -> Tensor:
    """The weights of a cosine classifier from the vectors of the classes.

    Args:
        vectors: (C, D). D is the width of the embeddings E, for which the projection maps them to features; or the
            width of the features. (If both are equal, the vectors are embeddings.)
        class_names: the names of the C classes.
        width: the width of the features.
        projection: (E, width), from `text_projection`; None if there is none.

    Returns:
        (C, width) float32, of length 1.

    Raises:
        InputError: the vectors have another width.
    """
    found = vectors.shape[1]
    if projection is not None and found == len(projection):
        vectors = F.normalize(vectors, dim=-1) @ projection.to(vectors)
    elif found != width:
        embeddings = "" if projection is None else f", or {len(projection)}, that of the embeddings"
        raise InputError(
            f"expected vectors of width {width}, that of the backbone's features{embeddings}, got {found}",
            name="class_text",
        )
    weights = F.normalize(vectors, dim=-1)
    places: dict[bytes, str] = {}
    for name, row in zip(class_names, weights, strict=True):
        other = places.setdefault(row.numpy().tobytes(), name)
        if other != name:
            warn_caller(f"class_text: classes {other!r} and {name!r} start with the same vector")
    return weights


def _check_available(repository: str) -> None:
    """Check within seconds that a repository is cached or can be reached: its libraries would retry for a minute."""
    from huggingface_hub import try_to_load_from_cache

    from ltfast.network import hub_unreachable

    if isinstance(try_to_load_from_cache(repository, "open_clip_config.json"), str):
        return
    if (why := hub_unreachable()) is not None:
        raise FileNotFoundError(f"it is not on this machine, and {why}")


def _content(path: Path) -> Tensor | Mapping[str, Tensor]:
    import numpy as np
    from safetensors.torch import load_file

    try:
        content: Any
        if path.suffix == ".safetensors":
            content = load_file(path)
        elif path.suffix in (".npy", ".npz"):
            read = np.load(path, allow_pickle=False)
            content = dict(read) if path.suffix == ".npz" else read
        elif path.suffix in (".pt", ".pth"):
            content = torch.load(path, map_location="cpu", weights_only=True)
        else:
            raise InputError(
                f"expected a .safetensors, .npy, .npz or .pt file, or names, got {str(path)!r}", name="class_text"
            )
        if isinstance(content, Mapping):
            return {str(name): torch.as_tensor(value) for name, value in content.items()}
        return torch.as_tensor(content)
    except InputError:
        raise
    except Exception as error:  # a damaged file makes its readers raise almost anything
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
        raise _wrong(path, reason, "a matrix, or vectors by the names of the classes") from error


def _wrong(path: Path, found: str, expected: str) -> InputError:
    return InputError(f"expected {expected}, got {found} in {path}", name="class_text")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(map(repr, names[:_SHOWN]))}{more}"
