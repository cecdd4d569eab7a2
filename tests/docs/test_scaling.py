import json

import pytest
import timm
import torch
from torch import nn

import scaling_model
from ltfast.losses import MemoryQueue, ProCoLoss
from ltfast.models import ImageClassifier
from scaling_counts import COUNTS, WORKS, count

OF = {work.name: work for work in WORKS}


def saved(name):
    return scaling_model.Count(**json.loads(COUNTS.read_text())["stages"][name])


def test_the_page_has_the_tables():
    text = scaling_model.PAGE.read_text()
    assert scaling_model.filled(text) == text


def test_a_page_without_a_place_is_refused():
    with pytest.raises(ValueError, match="lacks the markers of table"):
        scaling_model.filled("# Scaling\n")


@pytest.mark.parametrize(("name", "backbone"), [("ce", "resnet50"), ("livt finetune", "vit_base_patch16_224")])
def test_parameters_are_timms(name, backbone):
    with torch.device("meta"):
        network = timm.create_model(backbone, num_classes=1000)
    assert saved(name).parameters == sum(p.numel() for p in network.parameters())


def test_what_is_counted_is_what_was_counted():
    assert count(OF["ce"].build, OF["ce"].run) == saved("ce")


def test_operations_of_a_resnet():
    """Compares with the sum over the layers, computed from the sizes of their outputs."""
    network, expected = ImageClassifier("resnet32_cifar", 10), 0

    def add(layer, _, output):
        nonlocal expected
        expected += 2 * output[0].numel() * layer.weight[0].numel()

    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(add)
    network(torch.randn(2, 3, 32, 32))
    run = lambda network, number: network(torch.randn(number, 3, 32, 32)).float().sum()  # noqa: E731
    counted = count(lambda: ImageClassifier("resnet32_cifar", 10), run)
    assert counted.forward == expected
    assert 2.9 * expected < counted.step < 3 * expected  # the images need no gradient
    assert counted.parameters == sum(p.numel() for p in network.parameters())


def test_saved_bytes_and_launches():
    def build():
        return nn.Sequential(nn.Linear(10, 20), nn.Sigmoid(), nn.Linear(20, 30), nn.Tanh())

    def run(network, number):
        return network(torch.randn(number, 10)).float().sum()

    # per image: its values, the output of the sigmoid (saved by it and the next layer, once), the output of the tanh
    assert count(build, run, half=False).saved == 4 * (10 + 20 + 30)
    assert count(build, run, half=True).saved == 2 * (10 + 20 + 30)
    # forward: randn, two products, two activations, the sum; backward: two activations, three products, two biases
    # and the initial gradient
    assert count(build, run, half=False).launches == 14


def test_state_of_the_losses():
    recipe = OF["dscl contrast"].recipe
    queue = MemoryQueue(recipe["feature_dim"], recipe["queue_size"], num_classes=1000)
    assert OF["dscl contrast"].state(recipe) == sum(b.nbytes for b in queue.buffers()) - 2 * 8  # without two scalars
    recipe = OF["proco"].recipe
    loss = ProCoLoss(1000, recipe["feature_dim"], class_counts=range(1, 1001))
    assert OF["proco"].state(recipe) == sum(b.nbytes for b in loss.buffers())


def test_collectives():
    machine = scaling_model.Machine(link=100.0, network=10.0, reached=1.0, latency=0.5)
    assert machine.all_reduce(1000, 1) == machine.all_gather(1000, 1) == machine.broadcast(1000, 1) == 0
    assert machine.all_reduce(1000, 2) == 0.5 + 10
    assert machine.all_reduce(1000, 8) == 0.5 + 17.5
    assert machine.all_gather(1000, 16) == 0.5 + 93.75
    assert machine.broadcast(1000, 16) == 0.5 + 100


def test_a_step_is_as_long_as_its_parts():
    machine = scaling_model.Machine(peak=1e12, convolutions=0.5, transformer=0.5, launch=1e-6, latency=0.0, overlap=0.5)
    work, counted = OF["ce"], scaling_model.Count(10, 10, 0, 1, 3 * 10**9, 1, 1000)
    one, eight = (scaling_model.step(work, counted, world, 2.0, machine) for world in (1, 8))
    assert one.arithmetic == pytest.approx(256 * 3e9 / 0.5e12)
    assert one.device == one.arithmetic
    assert eight.arithmetic == pytest.approx(one.arithmetic / 8)
    assert one.loading == pytest.approx(256 * 2e-3 / machine.cores)
    few = scaling_model.step(work, counted, 10**6, 2.0, machine)
    assert few.waits_for == "launches"
    assert few.device == pytest.approx(1e-3)
