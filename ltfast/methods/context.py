"""What a method's `build` needs besides its settings and the data."""

from dataclasses import dataclass, field

from ltfast.engine.settings import RunSettings


@dataclass(frozen=True)
class BuildContext:
    """The circumstances of a run: the same for all methods.

    Attributes:
        run: the settings of the engine.
        rank, world_size: this process, and how many there are.
        test_batch_size: test images of a batch and process.
    """

    run: RunSettings = field(default_factory=RunSettings)
    rank: int = 0
    world_size: int = 1
    test_batch_size: int = 256

    def normalised_together(self, batch_size: int) -> int:
        """The images that BatchNorm normalises together, for so many images a batch and process."""
        return batch_size * (self.world_size if self.run.sync_batchnorm else 1)
