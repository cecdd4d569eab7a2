"""A classifier's weights from the embeddings of its classes' names."""

import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from ltfast.data import load
from ltfast.errors import InputError
from ltfast.methods import METHODS, BuildContext, class_text, settings_of
from ltfast.methods.class_text import class_weights, encode_class_names, read_class_vectors
from ltfast.models.text_projection import text_projection

CLASSES = ["great_white_shark", "tench", "a/b: ü"]
DTYPES = {"npy": np.float64, "npz": np.float16, "safetensors": torch.bfloat16, "pt": torch.float32}


@pytest.fixture
def vectors():
    return torch.randn(3, 5, dtype=torch.float64)


def write(path, content):
    """Write a matrix, or vectors by name, in a dtype that depends on the format."""
    dtype = DTYPES[path.suffix[1:]]
    named = content if isinstance(content, dict) else {"embeddings": content}
    if path.suffix in (".npy", ".npz"):
        named = {name: value.numpy().astype(dtype) for name, value in named.items()}
        if path.suffix == ".npz":
            np.savez(path, **named)
        else:
            np.save(path, next(iter(named.values())))
    else:
        named = {name: value.to(dtype).contiguous() for name, value in named.items()}
        if path.suffix == ".safetensors":
            save_file(named, path)
        else:
            torch.save(named if isinstance(content, dict) else next(iter(named.values())), path)
    return path


@pytest.mark.parametrize(
    ("ending", "by_name"), [*((ending, False) for ending in DTYPES), *((ending, True) for ending in list(DTYPES)[1:])]
)
def test_a_vector_for_each_class(ending, by_name, vectors, tmp_path):
    content = vectors
    if by_name:
        content = {"another": torch.ones(5), **dict(zip(reversed(CLASSES), vectors.flip(0), strict=True))}
    path = write(tmp_path / f"text.{ending}", content)
    found = read_class_vectors(path, CLASSES)
    assert found.dtype == torch.float32
    tolerance = {"npz": 1e-3, "safetensors": 1e-2}.get(ending, 1e-6)
    torch.testing.assert_close(found, vectors.float(), rtol=tolerance, atol=tolerance)


def replaced(rows, name, row):
    return {**rows, name: row}


def test_bad_files_are_named(vectors, tmp_path):
    rows = dict(zip(CLASSES, vectors.float(), strict=True))
    broken, text = tmp_path / "broken.safetensors", tmp_path / "text.csv"
    broken.write_bytes(b"\xff" * 100)
    text.write_text("1,2")
    pickled = tmp_path / "objects.npy"
    np.save(pickled, np.array([{}], dtype=object), allow_pickle=True)
    integers = tmp_path / "integers.npy"
    np.save(integers, np.ones((3, 5), dtype=np.int64))

    def bad(name, value):
        return write(tmp_path / f"{len(list(tmp_path.iterdir()))}.pt", replaced(rows, name, value))

    for path, message in (
        (tmp_path / "none.npy", "class_text: no file "),
        (tmp_path, "class_text: expected a regular file"),
        (broken, "class_text: expected a matrix, or vectors by the names of the classes, got "),
        (pickled, "class_text: expected a matrix, or vectors by the names of the classes, got ValueError: Object arr"),
        (text, "class_text: expected a .safetensors, .npy, .npz or .pt file, or names, got "),
        (
            integers,
            r"vectors of one width, as \(5,\) of class .great_white_shark., got \(5,\) torch.int64 for",
        ),
        (write(tmp_path / "few.npy", vectors[:2]), r"expected a row for each of the 3 classes, got shape \(2, 5\) in"),
        (write(tmp_path / "flat.npy", vectors[0]), r"expected a row for each of the 3 classes, got shape \(5,\) in"),
        (
            write(tmp_path / "tench.npz", {"trench": vectors[0], "shark": vectors[0]}),
            "expected a vector for each class, got none for 'great_white_shark', 'tench', 'a/b: ü' in .*/tench.npz, "
            "which has 2 vectors, the first by the name 'trench'",
        ),
        (bad("tench", torch.ones(4)), r"expected floating-point vectors .* got \(4,\) torch.float32 for class 'tench'"),
        (bad("tench", torch.ones(1, 5)), r"got \(1, 5\) torch.float32 for class 'tench'"),
        (bad("tench", torch.tensor([1.0, 2, torch.nan, 3, 4])), "expected finite numbers, got NaN .* class 'tench' in"),
        (bad("a/b: ü", torch.full((5,), torch.inf)), "expected finite numbers, got NaN or infinity for class 'a/b: ü'"),
        (bad("a/b: ü", torch.zeros(5)), "expected vectors that have a direction, got zeros for class 'a/b: ü' in"),
    ):
        with pytest.raises((InputError, FileNotFoundError), match=message) as error:
            read_class_vectors(path, CLASSES)
        assert "\n" not in str(error.value)


def test_embeddings_go_back_through_the_projection():
    """As in the authors' code: `normalize(normalize(text) @ proj.t())`, with `proj` (width, embedding)."""
    text, projection = torch.randn(3, 4), torch.randn(6, 4)
    expected = F.normalize(F.normalize(text, dim=-1) @ projection.t(), dim=-1)
    found = class_weights(text, CLASSES, 6, projection.t())
    torch.testing.assert_close(found, expected)
    features = torch.randn(3, 6)
    for transposed in (projection.t(), None):
        torch.testing.assert_close(class_weights(features, CLASSES, 6, transposed), F.normalize(features, dim=-1))
    square = torch.randn(6, 6)
    expected = F.normalize(F.normalize(features, dim=-1) @ square.t(), dim=-1)
    torch.testing.assert_close(class_weights(features, CLASSES, 6, square.t()), expected)


def test_vectors_of_another_width():
    with pytest.raises(InputError, match=r"class_text: expected vectors of width 6, that of the .* features, got 5"):
        class_weights(torch.randn(3, 5), CLASSES, 6, None)
    with pytest.raises(InputError, match=r"of width 6, .* features, or 4, that of the embeddings, got 5"):
        class_weights(torch.randn(3, 5), CLASSES, 6, torch.randn(4, 6))


def test_equal_vectors_are_named():
    text = torch.randn(3, 6)
    text[2] = 2 * text[0]
    with pytest.warns(UserWarning, match="class_text: classes 'great_white_shark' and 'a/b: ü' start with the same"):
        class_weights(text, CLASSES, 6, None)


@pytest.mark.parametrize("form", ["timm", "open_clip"])
def test_the_projection_is_in_the_weights(form):
    width, embedding = 192, 4
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=embedding, pre_norm=True)
    state = model.state_dict()
    if form == "open_clip":
        state = as_open_clip(state)
    found = text_projection("vit_tiny_patch16_224", state)
    assert torch.equal(found, model.head.weight)
    assert found.shape == (embedding, width)
    if form == "timm":
        assert text_projection("vit_tiny_patch16_224", {**state, "head.bias": torch.ones(embedding)}) is None
    del state["head.weight" if form == "timm" else "visual.proj"]
    assert text_projection("vit_tiny_patch16_224", state) is None


def as_open_clip(state):
    """timm's weights by the names of OpenAI's and open_clip's image towers."""
    swaps = [
        *(("patch_embed.proj", "conv1"), ("pos_embed", "positional_embedding"), ("norm_pre", "ln_pre")),
        *(("attn.qkv.", "attn.in_proj_"), ("attn.proj", "attn.out_proj"), ("blocks.", "transformer.resblocks.")),
        *((".norm", ".ln_"), ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj")),
    ]
    result = {}
    for name, value in state.items():
        for ours, theirs in swaps:
            name = name.replace(ours, theirs)
        if name.startswith("norm."):
            name = name.replace("norm.", "ln_post.")
        result[f"visual.{name}"] = value
    result["visual.class_embedding"] = result.pop("visual.cls_token")[0, 0]
    result["visual.positional_embedding"] = result["visual.positional_embedding"][0]
    result["visual.proj"] = result.pop("visual.head.weight").T
    del result["visual.head.bias"]
    return result


def test_the_projection_of_pretrained_weights(monkeypatch):
    made = timm.create_model("vit_tiny_patch16_224", num_classes=4)
    create = timm.create_model

    def pretrained_from_here(name, pretrained=False, **options):
        return made if pretrained else create(name, **options)

    monkeypatch.setattr(timm, "create_model", pretrained_from_here)
    assert torch.equal(text_projection("vit_tiny_patch16_224"), made.head.weight)


@pytest.fixture
def open_clip(monkeypatch):
    """Stands in for open_clip: the embedding of a text is made from its bytes. Has the calls."""
    module = types.ModuleType("open_clip")
    module.calls = []

    class Model(torch.nn.Module):
        def encode_text(self, tokens):
            assert not self.training
            module.calls.append(len(tokens))
            return F.one_hot(tokens, 256).sum(1).half()

    def create_model(name):
        module.calls.append(name)
        if "nowhere" in name:
            raise RuntimeError("Failed to download config\nand more")
        return Model()

    def get_tokenizer(name):
        module.calls.append(name)
        return lambda texts: torch.stack([F.pad(torch.tensor(list(text.encode())), (0, 77))[:77] for text in texts])

    module.create_model, module.get_tokenizer = create_model, get_tokenizer
    monkeypatch.setitem(sys.modules, "open_clip", module)
    monkeypatch.setattr(class_text, "_check_available", lambda repository: None)
    return module


def test_names_are_encoded_by_open_clip(open_clip):
    names = [f"the_class_{i}" for i in range(300)]
    found = encode_class_names(names, "timm/clip", "vit_clip")
    assert open_clip.calls == ["hf-hub:timm/clip", "hf-hub:timm/clip", 256, 44]
    texts = [f"a photo of a the class {i}." for i in range(300)]
    expected = torch.zeros(300, 256)
    for row, text in zip(expected, texts, strict=True):
        for byte in text.encode() + bytes(77 - len(text)):
            row[byte] += 1
    torch.testing.assert_close(found, F.normalize(expected, dim=-1))


def test_names_without_open_clip(open_clip, monkeypatch):
    remedy = "or give a file of embeddings, which docs/vision_transformers.md shows how to make"
    with pytest.raises(InputError, match=rf"cannot load .* of vit_clip from timm/nowhere .* config; {remedy}"):
        encode_class_names(CLASSES, "timm/nowhere", "vit_clip")
    with pytest.raises(InputError, match="expected a file of embeddings, since the weights of vit are not from the H"):
        encode_class_names(CLASSES, None, "vit")
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(InputError, match=rf"class_text: .* needs open_clip: pip install open_clip_torch; {remedy}"):
        encode_class_names(CLASSES, "timm/clip", "vit_clip")


def test_a_text_encoder_that_is_not_here_is_found_out_at_once(open_clip, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "open_clip", open_clip)
    monkeypatch.setattr("ltfast.network.hub_unreachable", lambda: "there is no network")
    with pytest.raises(InputError, match="it is not on this machine, and there is no network; or give a file"):
        encode_class_names(CLASSES, "timm/vit_base_patch16_clip_224.openai", "vit_clip")
    assert open_clip.calls == []


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.fixture
def weights(tmp_path):
    """The file of a small vision transformer with a projection to embeddings of width 4, and the projection."""
    model = timm.create_model("vit_digits", num_classes=4)
    save_file(model.state_dict(), tmp_path / "clip.safetensors")
    return tmp_path / "clip.safetensors", model.head.weight.detach()


def started(bundle, **values):
    plan = METHODS["lift"].build(settings_of("lift", values), bundle, BuildContext())
    (stage,) = plan.stages
    stage.start()
    return stage


@pytest.mark.parametrize("head_init", ["auto", "text"])
def test_a_run_starts_from_text(head_init, weights, digits, tmp_path):
    path, projection = weights
    text = torch.randn(10, 4)
    save_file({str(i): row.clone() for i, row in enumerate(text)}, tmp_path / "text.safetensors")
    values = {"weights": str(path), "class_text": str(tmp_path / "text.safetensors"), "head_init": head_init}
    stage = started(digits, **values)
    expected = F.normalize(F.normalize(text, dim=-1) @ projection, dim=-1)
    torch.testing.assert_close(stage.network.head.weight.detach(), expected)
    np.save(tmp_path / "features.npy", torch.randn(10, projection.shape[1]).numpy())
    features = torch.from_numpy(np.load(tmp_path / "features.npy"))
    stage = started(digits, weights=str(path), class_text=str(tmp_path / "features.npy"))
    torch.testing.assert_close(stage.network.head.weight.detach(), F.normalize(features, dim=-1))
    np.save(tmp_path / "wide.npy", np.ones((10, 7)))
    with pytest.raises(InputError, match=r"class_text: expected vectors of width .* or 4, that of the embeddings, got"):
        started(digits, weights=str(path), class_text=str(tmp_path / "wide.npy"))


def test_names_of_a_run(open_clip, weights, digits, monkeypatch):
    path, _ = weights
    with pytest.raises(InputError, match=r"class_text: .* since the classes are only numbered; --class-names FILE"):
        started(replace(digits, named=False), weights=str(path), class_text="names")
    with pytest.raises(InputError, match="since the weights of vit_digits are not from the Hugging Face Hub"):
        started(digits, weights=str(path), class_text="names")
    calls = []
    monkeypatch.setattr(class_text, "encode_class_names", lambda *given: calls.append(given) or torch.randn(10, 4))
    started(digits, weights=str(path), class_text="names")
    assert calls == [(digits.class_names, None, "vit_digits")]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"head_init": "text"},
            "class_text: expected a file of embeddings, or names, with --head-init text, got",
        ),
        ({"head_init": "random", "class_text": "a.npy"}, "class_text: expected none with --head-init random, got 'a.n"),
        ({"init": "runs/a", "class_text": "a.npy"}, "class_text: expected none with --init, got 'a.npy'"),
    ],
)
def test_settings_that_exclude_each_other(values, message):
    with pytest.raises(InputError, match=message):
        settings_of("lift", values)
