from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed

from ltfast.losses.fixed_dtype import FixedDtype
from ltfast.ops.core.collectives import rank, world_size


class ShardedState(FixedDtype):
    """A module whose tensors may be sharded by rows over the processes.

    Shards move with the module but are not buffers, since ``DistributedDataParallel`` overwrites buffers with those of
    the first process. A checkpoint holds the whole tensors, independent of the number of processes; on loading, each
    process takes its own rows. To save one:

        module.collect()  # in every process
        if rank == 0:
            torch.save(module.state_dict(), path)

    Without sharding, or with one process, the tensors are buffers and ``collect`` does nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shared = False  # whether sharding was requested
        self.processes = 1  # number of shards
        self._rows: Sequence[slice] = ()
        self._number = 0
        self._held: dict[str, bool] = {}  # name of each sharded tensor -> whether it is saved in a checkpoint
        self._whole: dict[str, Tensor] | None = None

    def share_out(self, number: int, rows: Sequence[slice]) -> slice:
        """Set the ``number`` of rows and the rows of each process, before the first ``hold``.

        Returns:
            The rows of this process.
        """
        self.shared, self.processes, self._rows, self._number = True, world_size(), rows, number
        return rows[rank()]

    def hold(self, name: str, tensor: Tensor, *, persistent: bool = True) -> None:
        """Store this process's rows as the attribute ``name``."""
        if self.processes == 1:
            self.register_buffer(name, tensor, persistent)
        else:
            setattr(self, name, tensor)
            self._held[name] = persistent

    @torch.no_grad()
    def collect(self) -> None:
        """Gather the rows of all processes in the host memory of each process, as ``state_dict`` requires.

        All processes must call it. The gathered rows are reused until the rows change.
        """
        if not self._held or self._whole is not None:
            return
        self.check_processes()
        self._whole = {}
        for name in self._saved():
            own = getattr(self, name).contiguous()
            whole = torch.empty(self._number, *own.shape[1:], dtype=own.dtype)
            for process, rows in enumerate(self._rows):
                part = own
                if process != rank():
                    part = own.new_empty(len(range(self._number)[rows]), *own.shape[1:])
                distributed.broadcast(part.view(-1).view(torch.uint8), process)  # some backends lack bfloat16
                whole[rows] = part.cpu()
            self._whole[name] = whole

    def changed(self) -> None:
        """Discard the collected rows, which are out of date."""
        self._whole = None

    def check_processes(self) -> None:
        """Check that the number of processes is the one for which the rows were sharded.

        Raises:
            RuntimeError: it is a different number.
        """
        if self.shared and world_size() != self.processes:
            raise RuntimeError(
                f"the {type(self).__name__} is sharded over {self.processes} processes, but there are "
                f"{world_size()} now: create it after torch.distributed is initialised"
            )

    def _saved(self) -> list[str]:
        return [name for name, persistent in self._held.items() if persistent]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        for name in self._held:
            setattr(self, name, self._move(fn, getattr(self, name)))
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._held:
            if self._whole is None:
                raise RuntimeError(
                    f"the {type(self).__name__} is sharded over {self.processes} processes: call its collect() in "
                    "each of them before state_dict()"
                )
            destination.update({prefix + name: whole for name, whole in self._whole.items()})

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        names = {prefix + name: name for name in self._saved()}
        rest = {key: value for key, value in state_dict.items() if key not in names}
        super()._load_from_state_dict(rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        for key, name in names.items():
            own = getattr(self, name)
            expected = (self._number, *own.shape[1:])
            if key not in state_dict:
                missing_keys.append(key)
            elif state_dict[key].shape != expected:
                error_msgs.append(f"size mismatch for {key}: {tuple(state_dict[key].shape)}, expected {expected}")
            else:
                with torch.no_grad():
                    own.copy_(state_dict[key][self._rows[rank()]])
        self.changed()
