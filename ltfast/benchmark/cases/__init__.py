"""What `ltfast bench` measures: the ops, whose cases are in their own folders, and the losses and models here."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ltfast.ops.core.bench import Bench

SHAPES = ("small", "imagenet-lt", "inat18", "large", "million", "16-million")


def benches() -> "dict[str, Bench]":
    """The names for `--ops`, with what is measured of each.

    The files are imported here, and not with this module: PyTorch takes seconds to import, and `--help` needs the
    shapes only.
    """
    from ltfast.benchmark.cases import models, proco, queue_losses
    from ltfast.ops.catalog import OPS

    found = {name: bench for op in OPS for name, bench in op.bench.items()}
    return found | proco.BENCHES | queue_losses.BENCHES | models.BENCHES
