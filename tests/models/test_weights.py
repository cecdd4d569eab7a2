"""Pretrained weights without a network: a missing file is reported within seconds, and cached files are used."""

import socket
import time
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from ltfast import network
from ltfast.errors import InputError
from ltfast.models import ImageClassifier
from ltfast.models.load_backbone import load_backbone


@pytest.fixture
def unreachable(monkeypatch, tmp_path):
    """A hub that accepts connections but never answers, and an empty cache."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for name in ("HF_HUB_ETAG_TIMEOUT", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # restored when the test ends
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        network.hub_unreachable.cache_clear()
        network.reachable.cache_clear()
        yield constants.ENDPOINT
    network.hub_unreachable.cache_clear()
    network.reachable.cache_clear()


def test_weights_that_cannot_be_had_are_named_within_seconds(unreachable, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "1")
    begun = time.monotonic()
    message = (
        f"pretrained: the weights of resnet18 are not on this machine, and {unreachable} does not answer within 1 "
        rf"seconds. .* copy them to {tmp_path}/hub/models--timm--resnet18.a1_in1k \(HF_HOME"
    )
    with pytest.raises(InputError, match=message):
        ImageClassifier("resnet18", 3, pretrained=True, image_size=32)
    assert time.monotonic() - begun < 10  # one attempt of a second; the hub itself makes twelve in a minute


def test_weights_in_the_cache_need_no_network(unreachable, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "1")
    commit = "0" * 40
    repository = tmp_path / "hub" / "models--timm--resnet18.a1_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    weights = {name: value + 0.5 for name, value in timm.create_model("resnet18").state_dict().items()}
    save_file(weights, repository / "snapshots" / commit / "model.safetensors")
    model = ImageClassifier("resnet18", 3, pretrained=True, image_size=32)
    assert torch.equal(model.backbone.conv1.weight, weights["conv1.weight"])


def test_a_file_of_torch_hub_is_named(monkeypatch, tmp_path):
    """Some models have weights that are not on the Hugging Face Hub."""
    name = next(n for n in timm.list_pretrained() if not timm.get_pretrained_cfg(n).hf_hub_id)
    url = timm.get_pretrained_cfg(name).url
    monkeypatch.setattr("ltfast.models.weights.reachable", lambda address: False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    file = tmp_path / "checkpoints" / Path(url).name
    with pytest.raises(InputError, match=f"weights of {name} are not on this machine, .* to {file}"):
        ImageClassifier(name, 3, pretrained=True)


def test_what_answers_is_reachable(monkeypatch):
    import http.server
    import threading

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(404 if self.path == "/none" else 200)
            self.end_headers()

        def log_message(self, *words):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        network.reachable.cache_clear()
        assert network.reachable(address)
        assert network.reachable(f"{address}/none")  # an error status is an answer
        server.shutdown()
    network.reachable.cache_clear()
    assert not network.reachable(address)
    network.reachable.cache_clear()


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("resnet18", {"fc.weight", "fc.bias"}),
        ("convnext_atto", {"head.fc.weight", "head.fc.bias"}),  # the norm in its head stays
        ("efficientvit_m0", None),  # it has a head of several layers
        # timm converts the names
        pytest.param("swin_tiny_patch4_window7_224", {"head.fc.weight", "head.fc.bias"}, marks=pytest.mark.slow),
    ],
)
def test_backbones_take_timm_s_weights_without_the_classifier(name, left_out):
    options = {"depths": (2, 2, 2, 2), "img_size": 64} if name.startswith("swin") else {}
    whole = timm.create_model(name, **options)
    backbone = timm.create_model(name, num_classes=0, in_chans=1, **options)
    found = load_backbone(backbone, whole.state_dict())
    if left_out is not None:
        assert set(found) == left_out
    state, own = whole.state_dict(), backbone.state_dict()
    assert set(state) == set(own) | set(found)
    assert all(torch.equal(value, state[k]) for k, value in own.items() if value.shape == state[k].shape)
    again = timm.create_model(name, num_classes=0, in_chans=1, **options)
    assert load_backbone(again, own) == []
    assert all(torch.equal(value, own[k]) for k, value in again.state_dict().items())
