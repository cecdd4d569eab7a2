"""The context in which a method is built: the run and its processes."""

from dataclasses import dataclass, field

from ltfast.engine.settings import RunSettings


@dataclass(frozen=True)
class BuildContext:
    """What a method's `build` needs besides its settings and the data; the same for all methods.

    Attributes:
        run: the settings of the engine.
        rank, world_size: this process's number, and the number of processes.
        test_batch_size: test images per batch and process.
    """

    run: RunSettings = field(default_factory=RunSettings)
    rank: int = 0
    world_size: int = 1
    test_batch_size: int = 256

    def normalised_together(self, batch_size: int) -> int:
        """The number of images that BatchNorm normalises together, with `batch_size` images per batch and process."""
        return batch_size * (self.world_size if self.run.sync_batchnorm else 1)
