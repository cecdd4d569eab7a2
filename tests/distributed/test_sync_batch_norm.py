"""BatchNorm over several processes equals BatchNorm on the global batch."""

import pytest
import torch
from timm.layers import BatchNormAct2d
from timm.layers.norm_act import SyncBatchNormAct
from torch import nn

from distributed.harness import run_processes
from ltfast.engine.sync_batch_norm import SyncBatchNorm, synchronise_batch_norm

NORMS = {
    "plain": lambda: nn.BatchNorm2d(3),
    "cumulative": lambda: nn.BatchNorm2d(3, momentum=None),
    "no_affine": lambda: nn.BatchNorm2d(3, affine=False),
    "no_statistics": lambda: nn.BatchNorm2d(3, track_running_stats=False),
    "rows": lambda: nn.BatchNorm1d(3),
    "activation": lambda: BatchNormAct2d(3, act_layer=nn.SiLU),
}
SHARES = [4, 1]  # rows of each process; a single row is enough if other processes have more


def passes(rank, states, inputs, outgoing):
    """Two training steps and one evaluation: outputs, gradients of inputs and weights, and buffers."""
    results = {}
    for name, make in NORMS.items():
        model = nn.Sequential(make()).double()
        model.load_state_dict(states[name])
        rows = slice(None)
        if torch.distributed.is_initialized():
            synchronise_batch_norm(model, torch.device("cpu"))
            assert type(model[0]) is SyncBatchNorm
            rows = slice(*[(0, SHARES[0]), (SHARES[0], None)][rank])
        shape = (5, 3) if name == "rows" else (5, 3, 4, 2)
        outputs, gradients = [], []
        for step in range(2):
            x = (1e4 * step + inputs[step]).view(5, 3, -1)[:, :, : 1 if name == "rows" else None].reshape(shape)
            x = x[rows].clone().requires_grad_()
            out = model(x)
            weights = outgoing[step].view(5, 3, -1)[:, :, : 1 if name == "rows" else None].reshape(shape)[rows]
            (out * weights).sum().backward()
            outputs.append(out.detach())
            gradients.append(x.grad)
        model.eval()
        outputs.append(model(x).detach())
        results[name] = (outputs, gradients, [p.grad for p in model.parameters()], model.state_dict())
    return results


def test_it_is_batch_norm_on_the_joined_batch():
    states = {}
    for name, make in NORMS.items():
        state = nn.Sequential(make()).double().state_dict()
        states[name] = {key: torch.rand_like(x) if x.is_floating_point() else x for key, x in state.items()}
    tensors = [torch.randn(5, 3, 4, 2, dtype=torch.float64) for _ in range(4)]
    whole = passes(0, states, tensors[:2], tensors[2:])
    parts = run_processes(passes, 2, states, tensors[:2], tensors[2:])
    close = {"rtol": 1e-10, "atol": 1e-10}
    for name in NORMS:
        joined = [[torch.cat(both) for both in zip(*(part[name][i] for part in parts), strict=True)] for i in (0, 1)]
        if name == "no_statistics":  # evaluated on its own batch, as usual
            joined[0], whole[name][0][2:] = joined[0][:2], []
        torch.testing.assert_close(joined, [*whole[name][:2]], **close, msg=name)
        summed = [sum(gradients) for gradients in zip(*(part[name][2] for part in parts), strict=True)]
        torch.testing.assert_close(summed, whole[name][2], **close, msg=name)
        for part in parts:
            torch.testing.assert_close(part[name][3], whole[name][3], **close, msg=name)


def one_value(rank, x):
    model = nn.Sequential(nn.BatchNorm1d(3))
    synchronise_batch_norm(model, torch.device("cpu"))
    try:
        model(x[:0] if rank else x)
    except ValueError as error:
        return str(error)


def test_one_value_a_channel_is_refused():
    for message in run_processes(one_value, 2, torch.randn(1, 3)):
        assert "expected more than 1 value per channel in training" in message


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_exchanged_in_place(device):
    shared = nn.BatchNorm2d(3)
    inner = nn.Sequential(nn.Conv2d(3, 3, 1), shared, BatchNormAct2d(3, act_layer=nn.SiLU), nn.GroupNorm(1, 3))
    model = nn.ModuleList([nn.Sequential(inner, shared), nn.Sequential(inner).eval()])
    names, parameters = list(model.state_dict()), list(model.parameters())
    synchronise_batch_norm(model, torch.device(device))
    synchronise_batch_norm(model, torch.device(device))
    expected = [SyncBatchNorm] * 2 if device == "cpu" else [nn.SyncBatchNorm, SyncBatchNormAct]
    assert [type(module) for module in inner] == [nn.Conv2d, *expected, nn.GroupNorm]
    assert model[0][1] is inner[1]
    assert isinstance(inner[2].act, nn.SiLU)
    assert inner[1].running_mean is shared.running_mean
    assert not inner[1].training  # unchanged
    assert list(model.state_dict()) == names
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
