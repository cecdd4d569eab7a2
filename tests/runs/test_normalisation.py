"""The mean and the standard deviation of a run's images."""

import pytest

from ltfast.errors import SettingError
from ltfast.methods import settings_of
from ltfast.runs import normalisation
from ltfast.runs.normalisation import with_normalisation
from methods.conftest import tiny_bundle

CLIP = {"backbone": "vit_base_patch16_clip_224.openai", "pretrained": True}


def chosen(tmp_path, method="lift", data=None, mean=None, std=None, **values):
    bundle = data or tiny_bundle(channels=3)
    found, words = with_normalisation(bundle, settings_of(method, values), mean, std, tmp_path / "checkpoint.pt")
    return (found.mean, found.std), words


def test_pretrained_weights_bring_theirs(tmp_path):
    (mean, std), words = chosen(tmp_path, **CLIP)
    assert mean == (0.48145466, 0.4578275, 0.40821073)  # of CLIP
    assert std == (0.26862954, 0.26130258, 0.27577711)
    assert words == "--mean 0.4815,0.4578,0.4082 --std 0.2686,0.2613,0.2758"
    found, _ = chosen(tmp_path, backbone="vit_base_patch16_224.augreg_in21k", pretrained=True)
    assert found == ((0.5,) * 3, (0.5,) * 3)
    (grey, _), _ = chosen(tmp_path, data=tiny_bundle(), **CLIP)
    assert grey == pytest.approx(((0.48145466 + 0.4578275 + 0.40821073) / 3,))
    # auto chooses the backbone first
    assert chosen(tmp_path, pretrained=True, image_size=224)[0] == ((0.5,) * 3, (0.5,) * 3)


def test_otherwise_those_of_the_data_or_of_the_options(tmp_path):
    assert chosen(tmp_path) == (((0.5,) * 3, (0.25,) * 3), "")
    assert chosen(tmp_path, "ce", backbone="resnet50") == (((0.5,) * 3, (0.25,) * 3), "")
    given = ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    assert chosen(tmp_path, mean=given[0], std=given[1], **CLIP) == (given, "")
    assert chosen(tmp_path, backbone="resnet32_cifar", pretrained=True, method="ce")[1] != ""  # timm's default
    for missing, values in (("std", {"mean": given[0]}), ("mean", {"std": given[1]})):
        with pytest.raises(SettingError, match=f"{missing}: expected a value for each channel, with --"):
            chosen(tmp_path, **values)


def test_a_run_that_continues_keeps_its_own(tmp_path, monkeypatch):
    (tmp_path / "checkpoint.pt").touch()
    facts = {"mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 3.0]}
    monkeypatch.setattr(normalisation, "load_description", lambda _: ({}, facts))
    assert chosen(tmp_path, **CLIP) == (((0.1, 0.2, 0.3), (1.0, 2.0, 3.0)), "")
