"""Light fine-tuning of a vision transformer with AdaptFormer: the time of a training step, the peak memory, the trained
parameters and the size of the checkpoint, of this package and of the code of LIFT's authors.

python bench/light_fine_tuning_step.py --seconds 120

Each side runs in a process of its own; they take turns, step by step, and have the same weights and images. The
authors' forward pass (Shi et al., ICML 2024; github.com/shijxcs/LIFT, models/peft_vit.py) is restated plainly: all
tokens in all blocks; tokens with the batch in the second dimension; attention of queries, keys and values of three
dimensions, for which PyTorch has no fused kernel; AdaptFormer as written, with the scale applied to its output.
"""

import argparse
import io
import json
import statistics
import subprocess
import sys
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from time import perf_counter, process_time
from typing import Any

import timm
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from ltfast.losses import LogitAdjustedLoss
from ltfast.models import AdaptedTransformer, CosineClassifier
from ltfast.models.adapters import AdaptFormer

SIDES = ("ltfast", "recompute", "authors")  # "recompute" is ltfast with this option
SCALE = 25.0


def authors_features(model: AdaptedTransformer, images: Tensor) -> Tensor:
    """The features (B, D), as in the authors' code."""
    vit = model.backbone
    x = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))
    for block, adapters in zip(vit.blocks, model.adapters, strict=True):
        x = authors_block(block, adapters["parallel"], x.permute(1, 0, 2)).permute(1, 0, 2)
    return vit.norm(x[:, 0])


def authors_block(block: Any, adapter: AdaptFormer, x: Tensor) -> Tensor:
    """A block with AdaptFormer, for tokens (N, B, D)."""
    tokens, images, dim = x.shape
    heads = block.attn.num_heads
    parts = F.linear(block.norm1(x), block.attn.qkv.weight, block.attn.qkv.bias).chunk(3, dim=-1)
    query, key, value = (part.contiguous().view(tokens, images * heads, dim // heads).transpose(0, 1) for part in parts)
    mixed = F.scaled_dot_product_attention(query, key, value)
    mixed = mixed.transpose(0, 1).contiguous().view(-1, dim)
    x = F.linear(mixed, block.attn.proj.weight, block.attn.proj.bias).view(tokens, images, dim) + x
    fed = block.mlp.fc2(block.mlp.act(block.mlp.fc1(block.norm2(x))))
    adapted = F.linear(F.relu(adapter.down(adapter.norm(x)), inplace=True), adapter.up.weight, adapter.up.bias)
    return fed + adapted * adapter.scale + x


class Side:
    """The model, the classifier, the loss and the optimiser of one side."""

    def __init__(self, name: str, backbone: str, batch: int, classes: int) -> None:
        torch.manual_seed(0)
        self.name = name
        vit: Any = timm.create_model(backbone, num_classes=0)
        self.model = AdaptedTransformer(vit, num_classes=classes, recompute=name == "recompute")
        self.head = CosineClassifier(vit.num_features, classes)
        counts = [max(1, 1280 >> (8 * k // classes)) for k in range(classes)]
        self.loss = LogitAdjustedLoss(counts)
        self.optimizer = torch.optim.SGD(self.trained(), 0.01, momentum=0.9, weight_decay=5e-4)
        self.images = torch.randn(batch, 3, *vit.patch_embed.img_size)
        self.labels = torch.randint(classes, (batch,))

    def trained(self) -> list[nn.Parameter]:
        return [*self.model.trained(), *self.head.parameters()]

    def step(self) -> float:
        self.optimizer.zero_grad()
        features = authors_features(self.model, self.images) if self.name == "authors" else self.model(self.images)
        loss = self.loss(SCALE * self.head(features), self.labels)
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    def checkpoint(self) -> int:
        """Bytes of the checkpoint: the trained tensors."""
        parts = {"transformer": self.model.adapters.state_dict(), "head": self.head.state_dict()}
        if self.name != "authors":
            return len(save({f"{part}.{name}": x for part, state in parts.items() for name, x in state.items()}))
        file = io.BytesIO()
        torch.save(parts, file)
        return len(file.getvalue())


def resident() -> float:
    """Memory of this process, in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def serve(side: Side) -> None:
    """Make a step for each line of the standard input, and answer with its measurements."""
    all_images, all_labels = side.images, side.labels
    side.images, side.labels = all_images[:1], all_labels[:1]
    side.step()  # so that the libraries are loaded
    side.images, side.labels = all_images, all_labels
    before = resident()
    for _ in sys.stdin:
        wall, cpu = perf_counter(), process_time()
        loss = side.step()
        result = {"seconds": perf_counter() - wall, "cpu_seconds": process_time() - cpu, "loss": loss}
        peak = getrusage(RUSAGE_SELF).ru_maxrss / 2**10
        result |= {"peak": peak, "above": peak - before, "checkpoint": side.checkpoint()}
        result["parameters"] = sum(parameter.numel() for parameter in side.trained())
        print(json.dumps(result), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_base_patch16_224")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=120, help="time for the steps of all sides")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        torch.set_num_threads(args.threads)
        serve(Side(args.side, args.backbone, args.batch, args.classes))
        return
    processes = {
        side: subprocess.Popen(
            [sys.executable, __file__, *sys.argv[1:], "--side", side],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for side in SIDES
    }
    results: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    end = perf_counter() + args.seconds
    while perf_counter() < end or len(results["ltfast"]) < 3:
        for side, process in processes.items():
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("step\n")
            process.stdin.flush()
            results[side].append(json.loads(process.stdout.readline()))
    for process in processes.values():
        process.communicate()
    print(f"{args.backbone}, batch {args.batch}, {args.classes} classes, {args.threads} threads, float32")
    rows = {}
    for side, steps in results.items():
        counted = steps[1:]  # the first step warms up
        rows[side] = {
            "seconds a step (median)": statistics.median(step["seconds"] for step in counted),
            "CPU seconds a step (median)": statistics.median(step["cpu_seconds"] for step in counted),
            "peak memory, MiB": max(step["peak"] for step in counted),
            "peak memory beyond that for one image, MiB": max(step["above"] for step in counted),
            "trained parameters": counted[0]["parameters"],
            "checkpoint, bytes": counted[0]["checkpoint"],
            "loss of the first step": steps[0]["loss"],
        }
    for name, published in rows["authors"].items():
        ours = "  ".join(f"{side} {rows[side][name]:13.4f} ({published / rows[side][name]:.3f}x)" for side in SIDES[:2])
        print(f"{name:42} authors {published:13.4f}  {ours}")


if __name__ == "__main__":
    main()
