"""Counts the operations and bytes of a training step of each method, and measures the CPU time to load an image, for
`scaling_model.py`. The counts come from the networks that the methods build, run on fake tensors.

    python bench/scaling_counts.py count      # one minute; needs no data or weights
    python bench/scaling_counts.py loading    # half a minute, on scikit-learn's photographs
"""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import sklearn.datasets
import torch
import yaml
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from ltfast.benchmark.run import machine
from ltfast.data import DataBundle, PatchViews, SeededViews, train_transform
from ltfast.data.datasets import FileDataset
from ltfast.models import ImageClassifier, MaskedAutoencoder, ProjectionHead, PromptedClassifier, make_backbone

ROOT = Path(__file__).parent.parent
COUNTS, LOADING = ROOT / "bench/results/model/counts.json", ROOT / "bench/results/model/loading.json"

IMAGES, CLASSES = 115_846, 1000  # ImageNet-LT, at 224 pixels
VIT = "vit_base_patch16_224"

Recipe = dict[str, Any]
Build = Callable[[], nn.Module]
Run = Callable[[Any, int], Tensor]  # network, number of training images -> a scalar to differentiate


@dataclass(frozen=True)
class Count:
    """Counts of a network's training step, by default under bfloat16 autocast. A multiply-add is two operations.

    Attributes:
        parameters, trained: numbers of all and of the trained parameters, without those of a momentum encoder.
        buffers: bytes of the buffers.
        forward, step: operations per training image with all its views, in the forward pass and in the whole step.
        saved: bytes per training image that the forward pass saves for the backward pass.
        launches: operators of a step that launch at least one kernel.
    """

    parameters: int
    trained: int
    buffers: int
    forward: int
    step: int
    saved: int
    launches: int


@dataclass(frozen=True)
class Work:
    """A stage of a method with its recipe for ImageNet-LT.

    Attributes:
        name: method and stage.
        kind: kind of the network, "convolutions" or "transformer".
        build, run: functions that build the network and run its forward pass.
        views: the views that are loaded per image; see `LOADINGS`.
        batch: name of the setting with the batch size.
        epochs: number of epochs of the stage.
        drawn: images drawn per epoch relative to the size of the training set.
        states: optimiser states per parameter: 1 for momentum, 2 for AdamW.
        encoders: number of additional networks, such as a momentum encoder.
        state: bytes of the loss's buffers.
        reduced, gathered: bytes per step that the loss sums over the processes, and gathers from all processes.
        operations: operations of the loss per step.
    """

    name: str
    kind: str
    build: Build
    run: Run
    views: str
    batch: str = "batch_size"
    epochs: Callable[[Recipe], int] = lambda recipe: recipe["epochs"]
    drawn: int = 1
    states: int = 1
    encoders: int = 0
    state: Callable[[Recipe], float] = lambda _: 0.0
    reduced: Callable[[Recipe], float] = lambda _: 0.0
    gathered: Callable[[Recipe], float] = lambda _: 0.0
    operations: Callable[[Recipe], float] = lambda _: 0.0

    @property
    def recipe(self) -> Recipe:
        return read_recipe(self.name.partition(" ")[0])

    @property
    def images(self) -> int:
        """The number of images per step, over all devices."""
        return self.recipe[self.batch] * self.recipe.get("accumulate", 1)


@cache
def read_recipe(method: str) -> Recipe:
    return yaml.safe_load((ROOT / f"ltfast/recipes/{method}/imagenet-lt.yaml").read_text())


def plain(network: Any, number: int) -> Tensor:
    return network(torch.randn(number, 3, 224, 224)).float().sum()


class TwoBranches(ImageClassifier):
    """A classifier with a projection head, as the contrastive methods train them."""

    def __init__(self, head: Any = "linear", **options: Any) -> None:
        super().__init__("resnet50", CLASSES, head=head)
        self.projection = ProjectionHead(self.head.in_features, **options)

    def branches(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(images)
        return self.head(features), self.projection(features)


def three_views(network: Any, number: int, pixels: int = 224) -> Tensor:
    scores, features = network.branches(torch.randn(3 * number, 3, pixels, pixels))
    return scores[:number].float().sum() + features[number:].sum()


def query_key_patches(network: Any, number: int, pixels: int = 224, patches: int = 5) -> Tensor:
    query = network.branches(torch.randn(number, 3, pixels, pixels))[1]
    with torch.no_grad():  # keys of the momentum encoder, and projections of the pooled patches
        network.branches(torch.randn(number, 3, pixels, pixels))
        network.projection(torch.randn(number * patches, network.head.in_features))
    return query.sum() + network.projection(network.backbone(torch.randn(number * patches, 3, 64, 64))).sum()


def grouped(network: Any, number: int) -> Tensor:
    scores, _, cosines = network.grouped(torch.randn(number, 3, 224, 224))
    return scores.float().sum() + cosines.float().sum()


def autoencoder() -> nn.Module:
    return MaskedAutoencoder(make_backbone(VIT)[0], decoder_dim=512, decoder_depth=8, decoder_heads=16)


def transformer(backbone: str = VIT) -> nn.Module:
    network: Any = make_backbone(backbone)[0]
    network.reset_classifier(CLASSES, "avg")
    return network


def prompted(*, group: bool, backbone: str = VIT) -> nn.Module:
    network = PromptedClassifier(backbone, CLASSES)
    network.transformer.eval().requires_grad_(False)
    network.pool.requires_grad_(group)
    network.transformer.prompts.requires_grad_(not group)
    return network


WORKS = (
    Work("ce", "convolutions", lambda: ImageClassifier("resnet50", CLASSES), plain, "imagenet"),
    Work(
        "proco",
        "convolutions",
        lambda: TwoBranches("cosine", feature_dim=1024, hidden_dim=2048),
        three_views,
        "randaugment, 2 simclr",
        # sums of two epochs, directions and starts; counts of two epochs; kappa and log prior
        state=lambda recipe: CLASSES * (4 * 4 * recipe["feature_dim"] + 2 * 8 + 2 * 4),
        reduced=lambda recipe: 4 * CLASSES * (recipe["feature_dim"] + 1),
        operations=lambda recipe: 4 * 2 * recipe["batch_size"] * CLASSES * recipe["feature_dim"],
    ),
    Work(
        "dscl contrast",
        "convolutions",
        lambda: TwoBranches(feature_dim=128, hidden_dim=None, batch_norm=False),
        query_key_patches,
        "dscl, 5 patches",
        encoders=1,
        # keys and labels; sums and counts of the keys of each class
        state=lambda recipe: (
            recipe["queue_size"] * (4 * recipe["feature_dim"] + 8) + 8 * CLASSES * (recipe["feature_dim"] + 1)
        ),
        # queries and their gradients; keys and labels, for the loss and for the queue
        gathered=lambda recipe: recipe["batch_size"] * (4 * 4 * recipe["feature_dim"] + 2 * 8),
        operations=lambda recipe: (
            4 * recipe["batch_size"] * (1 + 2 * recipe["patches"]) * recipe["queue_size"] * recipe["feature_dim"]
        ),
    ),
    Work(
        "livt pretrain",
        "transformer",
        autoencoder,
        lambda network, number: network(torch.randn(number, 3, 224, 224)),
        "mae",
        batch="pretrain_batch_size",
        epochs=lambda recipe: recipe["pretrain_epochs"],
        states=2,
    ),
    Work("livt finetune", "transformer", transformer, plain, "randaugment", states=2),
    Work("lpt shared", "transformer", lambda: prompted(group=False), plain, "imagenet"),
    Work(
        "lpt group",
        "transformer",
        lambda: prompted(group=True),
        grouped,
        "imagenet",
        epochs=lambda recipe: recipe["group_epochs"],
        drawn=2,
    ),
    Work(
        "do",
        "convolutions",
        lambda: ImageClassifier("resnet50", CLASSES),
        plain,
        "imagenet",
        epochs=lambda recipe: recipe["epochs"] + 2 * (recipe["later_epochs"] + recipe["prune_epochs"]),
    ),
)

# The networks of `ltfast bench step` on a CPU in float32, whose peak memory was measured.
BENCHED: dict[str, tuple[Build, Run]] = {
    "proco": (lambda: TwoBranches(), lambda network, n: three_views(network, n, 112)),
    "dscl": (
        lambda: TwoBranches(hidden_dim=None, batch_norm=False),
        lambda network, n: query_key_patches(network, n, 112),
    ),
    "lpt": (lambda: prompted(group=True, backbone="vit_small_patch16_224"), grouped),
    "livt": (lambda: transformer("vit_small_patch16_224"), plain),
}


def count(build: Build, run: Run, *, half: bool = True) -> Count:
    """Run a network on fake tensors, which have shapes but no data, and count its step.

    Args:
        build: builds the network.
        run: runs its forward pass.
        half: whether to use bfloat16 autocast.
    """
    mode = FakeTensorMode()
    with torch.device("meta"):
        network = build()
    _make_fake(network, mode)
    own = {tensor.untyped_storage()._cdata for tensor in (*network.parameters(), *network.buffers())}
    rows = []
    for number in (2, 4):  # the difference is the part per image; copies of the weights cancel
        saved: dict[int, Any] = {}

        def keep(tensor: Tensor, saved: dict[int, Any] = saved) -> Tensor:
            storage = tensor.untyped_storage()
            saved.setdefault(storage._cdata, storage)  # keep it alive, so that its address is not reused
            return tensor

        counter, launches = FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION), Launches()
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with mode, launches, counter, hooks, torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = run(network, number)
            forward = counter.get_total_flops()
            loss.backward()
        network.zero_grad()  # otherwise the next backward pass would accumulate
        kept = sum(storage.nbytes() for address, storage in saved.items() if address not in own)
        rows.append((forward, counter.get_total_flops(), kept))
    forward, step, kept = ((b - a) // 2 for a, b in zip(*rows, strict=True))
    return Count(
        parameters=sum(p.numel() for p in network.parameters()),
        trained=sum(p.numel() for p in network.parameters() if p.requires_grad),
        buffers=sum(buffer.nbytes for buffer in network.buffers()),
        forward=forward,
        step=step,
        saved=kept,
        launches=launches.number,
    )


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


_CPU_ATTENTION = {  # PyTorch counts only the attention operators of GPUs
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class Launches(TorchDispatchMode):
    """Counts operators that compute something. Views, allocations and queries do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        view = any(result.alias_info is not None and not result.alias_info.is_write for result in func._schema.returns)
        self.number += not view and func.namespace != "prim" and not func.__name__.startswith("empty")
        return func(*args, **(kwargs or {}))


def _make_fake(network: nn.Module, mode: FakeTensorMode) -> None:
    for module in network.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                with mode:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype)
                parameter = isinstance(tensor, nn.Parameter)
                tensors[name] = nn.Parameter(fake, tensor.requires_grad) if parameter else fake


def count_all() -> dict[str, dict[str, Any]]:
    counts = {work.name: asdict(count(work.build, work.run)) for work in WORKS}
    return {"stages": counts, "benched": {name: asdict(count(*pair, half=False)) for name, pair in BENCHED.items()}}


LOADINGS = {
    "imagenet": ["imagenet"],
    "mae": ["mae"],
    "randaugment": ["randaugment"],
    "randaugment, 2 simclr": ["randaugment", "simclr", "simclr"],
    "dscl, 5 patches": ["patches"],
}


def measure_loading(seconds: float = 20.0) -> dict[str, Any]:
    """The median CPU time in ms to read, decode and augment a training image on one core."""
    torch.set_num_threads(1)
    folder = Path(sklearn.datasets.__file__).parent / "images"
    photographs = [folder / "china.jpg", folder / "flower.jpg"]
    data = FileDataset(photographs, torch.tensor([0, 1]), ["china", "flower"])
    bundle = DataBundle(data, data, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), 224, 3)

    def transform(policy: Any) -> Any:
        if policy == "patches":
            return PatchViews(bundle, "dscl", 224, patches=5, patch_size=64, scale=(0.05, 0.6))
        return train_transform(bundle, policy)

    medians = {}
    for name, policies in LOADINGS.items():
        views, times = SeededViews(data, [transform(policy) for policy in policies], seed=0), []
        end = time.monotonic() + seconds / len(LOADINGS)
        while time.monotonic() < end:
            before = time.process_time()
            views[len(times), len(times) % 2]
            times.append(1e3 * (time.process_time() - before))
        medians[name] = statistics.median(times)
    about = machine(torch.device("cpu"))
    kilobytes = " and ".join(f"{path.stat().st_size / 1e3:.0f}" for path in photographs)
    return {
        "machine": about["machine"],
        "python": platform.python_version(),
        "photographs": f"two photographs of 640 x 427 pixels ({kilobytes} kB)",
        "milliseconds": medians,
    }


def main() -> None:
    for action in sys.argv[1:]:
        path, make = {"count": (COUNTS, count_all), "loading": (LOADING, measure_loading)}[action]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(make(), indent=2) + "\n")


if __name__ == "__main__":
    main()
