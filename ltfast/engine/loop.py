"""The training loop.

Every step's randomness is a function of (seed, stage, step), and every batch one of (seed, epoch, place in it). So a
checkpoint is the weights, the optimiser's state and the position, and a run that was killed and started again ends
with the weights of one that was not: bit for bit on a CPU.
"""

import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, find_batch_size, reduce, send_to_device
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from ltfast import __version__
from ltfast.engine.checkpoint import (
    CHECKPOINT,
    WEIGHTS,
    CheckpointError,
    check_content,
    check_position,
    check_settings,
    load_checkpoint,
    load_optimizer,
    load_weights,
    save_adapted,
    save_checkpoint,
)
from ltfast.engine.console import Console
from ltfast.engine.events import Events
from ltfast.engine.files import remove_partial_files
from ltfast.engine.identity import SAME_COMMAND, check_data, check_processes, same_folder
from ltfast.engine.interrupt import Interrupt, graceful_interrupt
from ltfast.engine.lock import Lock, locked
from ltfast.engine.metrics import evaluate
from ltfast.engine.plot import plot_per_class
from ltfast.engine.rendezvous import join_group
from ltfast.engine.report import METRICS, PICTURE, read_metrics, write_report
from ltfast.engine.schema import is_finite, like
from ltfast.engine.seeding import seed_everything
from ltfast.engine.settings import RunSettings
from ltfast.engine.stage import Plan, Stage
from ltfast.engine.sync_batch_norm import synchronise_batch_norm
from ltfast.engine.timing import LossTime, time_losses
from ltfast.errors import InputError
from ltfast.ops.core.torch_internals import leave_to_processes

_LOG_STEPS = 10  # losses are read this often: reading one waits for the GPU
_LEAST_SCALE = 1e-4  # of fp16's losses; it begins at 65536, and is halved at each step whose gradient overflows
_START, _EPOCH, _STEP = range(3)  # what a seed is for


class TrainingError(RuntimeError):
    """Training cannot go on: a loss, a gradient or a weight is not finite."""


@dataclass
class Position:
    """Where a run is: everything before this step is done."""

    stage: int = 0
    epoch: int = 0
    step: int = 0
    """Optimiser steps done in this epoch."""


def make_accelerator(precision: str, *, deterministic: bool = False) -> Accelerator:
    """The devices and processes of this run, as `accelerate launch` or `torchrun` set them up.

    Args:
        precision: see `RunSettings`.
        deterministic: whether torch may use deterministic algorithms alone, in this process from now on.

    Raises:
        ValueError: fp16 without a GPU.
    """
    if precision == "fp16" and not torch.cuda.is_available():
        raise InputError("fp16 needs a GPU; expected fp32 or bf16 on this machine", name="precision")
    torch.backends.cudnn.deterministic = True  # same seed, same machine: same bits
    torch.use_deterministic_algorithms(deterministic)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    join_group()
    # DistributedDataParallel's broadcast_buffers stays on: the checkpoint holds the first process's buffers, so the
    # others must not train with others, or a run that was killed and started again would be a different one
    # without cpu=True, Accelerate overlooks the other processes of torchrun on a machine without a GPU
    return Accelerator(
        cpu=not torch.accelerator.is_available(), mixed_precision="no" if precision == "fp32" else precision
    )


def train(
    plan: Plan,
    *,
    run: RunSettings,
    settings: Mapping[str, Any],
    facts: Mapping[str, Any],
    class_counts: Sequence[int],
    groups: Mapping[str, Sequence[int]],
    out: Path,
    accelerator: Accelerator,
) -> dict[str, Any] | None:
    """Train a plan's stages, from the checkpoint in `out` if there is one, and write the run's report.

    Args:
        plan: stages and test batches; the stages' initial weights already depend on `run.seed`.
        run: how to run.
        settings: all that decides the result, as JSON gives it back; a checkpoint of other settings is refused.
        facts: what `ltfast eval` needs to know of the data, as plain values; kept in the checkpoint. `digests` in it,
            a hash for the name of each part, must be the same when the run goes on.
        class_counts: training images of each class, length C.
        groups: class indices of each group.
        out: the run's folder; made if it is not there.
        accelerator: from `make_accelerator(run.precision)`.

    Returns:
        What `metrics.json` holds; None in processes other than the first, and if the user interrupted the run.

    Raises:
        CheckpointError: the checkpoint is damaged or belongs to other settings or data.
        InputError: the processes have different settings, data, versions or checkpoints; it is raised in all of them.
        TrainingError: a loss or a weight is not finite; the last good checkpoint is kept.
        FolderError: another run is writing to `out`, or `out` was deleted or replaced under this one.
        OSError: a file cannot be written, and the last checkpoint is whole.
    """
    return _Run(plan, run, settings, facts, class_counts, groups, out, accelerator).execute()


class _Run:
    def __init__(
        self,
        plan: Plan,
        run: RunSettings,
        settings: Mapping[str, Any],
        facts: Mapping[str, Any],
        class_counts: Sequence[int],
        groups: Mapping[str, Sequence[int]],
        out: Path,
        accelerator: Accelerator,
    ) -> None:
        self.plan, self.run, self.facts, self.out, self.accelerator = plan, run, facts, out, accelerator
        # with other processes or none, the same settings give other batches
        self.settings = {**settings, "processes": accelerator.num_processes}
        self.class_counts, self.groups = class_counts, groups
        self.modules = nn.ModuleList(plan.stages)
        if run.sync_batchnorm and accelerator.num_processes > 1:
            synchronise_batch_norm(self.modules, accelerator.device)
        self.steps_per_epoch = [math.ceil(len(stage.batches) / run.accumulate) for stage in plan.stages]
        self.position = Position()
        self.loss_sum = 0.0  # over the steps of this epoch
        self.train_seconds = 0.0
        self.metrics: dict[str, Any] | None = None
        self.path = out / CHECKPOINT
        self.console = Console(quiet=not accelerator.is_main_process)
        self.interrupt = Interrupt()
        self.events: Events | None = None
        self.lock: Lock | None = None

    def execute(self) -> dict[str, Any] | None:
        check_processes(self._identity(), self.accelerator, hint=SAME_COMMAND)
        with locked(self.out) if self.accelerator.is_main_process else nullcontext() as self.lock:
            return self._execute()

    def _identity(self) -> dict[str, Any]:
        """What must be the same in all processes: not the number of those that load images."""
        settings = {name: value for name, value in vars(self.run).items() if name != "workers"}
        data = {"class_counts": list(self.class_counts), **self.facts.get("digests", {})}
        return {**settings, **self.settings, **data, "ltfast": __version__, "torch": torch.__version__}

    def _execute(self) -> dict[str, Any] | None:
        if self.accelerator.is_main_process:
            remove_partial_files(self.out, (CHECKPOINT, WEIGHTS, METRICS, PICTURE))
        saved = self._load()
        report = self._written_report() if self.position.stage == len(self.plan.stages) else None
        check_processes(
            {"checkpoint": saved and {**saved["position"], "train_seconds": saved["train_seconds"]},
             "finished": report is not None},
            self.accelerator,
            hint=same_folder(self.out),
        )  # fmt: skip
        if report is not None:
            self.console.print(f"{self.out} holds a finished run of these settings: nothing to do")
            if self.accelerator.is_main_process and not (self.out / PICTURE).exists():
                plot_per_class(self.out / PICTURE, report, self.facts["class_names"], self.groups)
            return report
        if saved is None and self.accelerator.is_main_process:
            for name in (METRICS, PICTURE):  # of a run whose checkpoint was deleted
                (self.out / name).unlink(missing_ok=True)
        if self.accelerator.is_main_process:
            # what a killed run logged after its checkpoint is logged again: purge it
            purge_step = self._global_step() if saved else None
            self.events = Events(self.out, purge_step=purge_step, say=self.console.print)
        with graceful_interrupt(alone=self.accelerator.num_processes == 1) as self.interrupt:
            for stage in self.plan.stages[self.position.stage :]:
                finished = self._train_stage(stage, saved)
                stage.batches.close()
                if not finished:
                    where = f"epoch {self.position.epoch + 1}, step {self.position.step}"
                    self.console.print(f"stopped at {where}; the same command continues from there")
                    return None
                saved = None
        return self._report()

    def _train_stage(self, stage: Stage, saved: dict[str, Any] | None) -> bool:
        """Train a stage to its end; False if the user interrupted it."""
        number, steps = self.position.stage, self.steps_per_epoch[self.position.stage]
        _freeze(stage)
        stage.to(self.accelerator.device)
        resumed = saved is not None and saved["optimizer"] is not None
        if not resumed:
            seed_everything(self.run.seed, number, _START)
            stage.start()
        if self.run.compile:
            torch.compiler.reset()  # of the stage before
            stage.compile(fullgraph=True)  # in place, so that no name changes
        own = {id(buffer) for buffer in stage.replicated()}
        replicated = {name for name, buffer in stage.named_buffers() if id(buffer) in own}
        leave_to_processes(stage, replicated)
        model, optimizer = self.accelerator.prepare(stage, stage.optimizer())
        scheduler = stage.optimisation.make_scheduler(optimizer, steps)
        if saved is not None and resumed:
            load_optimizer(self.path, optimizer.optimizer, saved["optimizer"])
            if self.accelerator.scaler is not None and saved["scaler"]:
                check_content(self.path, like(self.accelerator.scaler.state_dict()), saved["scaler"], "scaler")
                self.accelerator.scaler.load_state_dict(saved["scaler"])
        for epoch in range(self.position.epoch, stage.optimisation.epochs):
            stage.epoch = epoch
            if self.position.step == 0:
                seed_everything(self.run.seed, number, _EPOCH, epoch)
                stage.start_epoch()
            loss = self._train_epoch(stage, model, optimizer, scheduler)
            if loss is None:
                return False
            sent = [buffer for name, buffer in stage.named_buffers() if name not in replicated]
            broadcast(sent)  # all processes evaluate what the checkpoint holds
            last = epoch + 1 == stage.optimisation.epochs
            self.position = Position(number + 1) if last else Position(number, epoch + 1)
            self._save(None if last else optimizer)
            self._end_epoch(stage, epoch, loss)
            if self.position.stage < len(self.plan.stages) and self._stopping():
                return False
        if self.position.stage < len(self.plan.stages):
            self.accelerator.free_memory()  # it holds on to this stage's optimiser
        return True

    def _train_epoch(self, stage: Stage, model: nn.Module, optimizer: Any, scheduler: Any) -> float | None:
        """The rest of an epoch; its mean loss, or None if the user interrupted it."""
        number, epoch, accumulate = self.position.stage, self.position.epoch, self.run.accumulate
        steps = self.steps_per_epoch[number]
        batches = stage.batches.epoch(epoch, self.position.step * accumulate)
        trained = [p for p in stage.parameters() if p.requires_grad]
        window: list[dict[str, Tensor]] = []
        total = torch.tensor(self.loss_sum, device=self.accelerator.device)
        begun = saved = time.monotonic()
        model.train()
        with self._progress() as progress:
            task = progress.add_task(f"{stage.name} {epoch + 1}/{stage.optimisation.epochs}", total=steps)
            progress.update(task, completed=self.position.step)
            while self.position.step < steps:
                done = epoch * steps + self.position.step
                scheduler.step_update(done)
                logged = self._step(stage, model, optimizer, batches, trained, number, done)
                stage.after_step()
                self.position.step += 1
                total += logged["loss"]
                window.append(logged)
                progress.advance(task)
                last = self.position.step == steps
                due = self._due(saved)
                stopping = not last and self._stopping(self.position.step)
                if stopping or due or last or self.position.step % _LOG_STEPS == 0:
                    self._log(stage, window, optimizer.param_groups[0]["lr"])
                if not last and (stopping or due):
                    self.train_seconds += time.monotonic() - begun
                    self.loss_sum = float(total)
                    self._save(optimizer)
                    begun = saved = time.monotonic()
                    if stopping:
                        return None
        self.train_seconds += time.monotonic() - begun
        self.loss_sum = 0.0
        return float(total) / steps

    def _step(
        self,
        stage: Stage,
        model: nn.Module,
        optimizer: Any,
        batches: Any,
        trained: Sequence[nn.Parameter],
        number: int,
        done: int,
    ) -> dict[str, Tensor]:
        """One optimiser step; the values to log, on the device."""
        window = list(islice(batches, self.run.accumulate))
        sizes = [find_batch_size(batch) for batch in window]
        sums: dict[str, Tensor] = {}
        for i, batch in enumerate(window):
            parts = sum(sizes) / sizes[i]  # not its inverse: of equal batches, their number exactly
            batch = send_to_device(batch, self.accelerator.device, non_blocking=True)
            seed_everything(self.run.seed, number, _STEP, done, i, self.accelerator.process_index)
            with nullcontext() if i + 1 == len(window) else self.accelerator.no_sync(model):
                loss, logged = model(stage.prepare(batch))
                self.accelerator.backward(loss / parts)
            for name, value in {"loss": loss, **logged}.items():
                sums[name] = sums.get(name, 0) + value.detach() / parts
        stage.after_backward()
        if self.run.clip_norm is not None:
            self.accelerator.clip_grad_norm_(trained, self.run.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        return sums

    def _log(self, stage: Stage, window: list[dict[str, Tensor]], lr: float) -> None:
        """Read the losses since the last time, and stop if one is not finite or no gradient is."""
        losses = torch.stack([logged["loss"] for logged in window]).tolist()
        where = f"stage {stage.name!r}, epoch {self.position.epoch + 1}, step"
        for step, loss in enumerate(losses, self.position.step - len(losses) + 1):
            if not math.isfinite(loss):
                raise TrainingError(f"the loss is {loss} at {where} {step}; {self._kept()}. A lower --lr often helps")
        scaler = self.accelerator.scaler
        if scaler is not None and (scale := scaler.get_scale()) < _LEAST_SCALE:
            raise TrainingError(
                f"the gradient overflows at {where} {self.position.step}, with the loss times {scale:.0e} too; "
                f"{self._kept()}. A lower --lr often helps, or --precision bf16"
            )
        if self.events:
            self._check_folder()
            step = self._global_step()
            for name in window[-1]:
                value = torch.stack([logged[name] for logged in window]).float().mean()
                self.events.add(f"{stage.name}/{name}", value.item(), step)
            self.events.add(f"{stage.name}/lr", lr, step)
        window.clear()

    def _end_epoch(self, stage: Stage, epoch: int, loss: float) -> None:
        line = f"{stage.name} {epoch + 1}/{stage.optimisation.epochs}  loss {loss:.4f}"
        if stage.evaluated:
            groups, num_classes = self.groups, len(self.class_counts)
            self.metrics = evaluate(stage, self.plan.test, groups, num_classes, self.accelerator)
            self._check_folder()
            for name in ("top1", *groups):
                value = self.metrics[name]
                line += f"  {name} {'-' if value is None else f'{value:.1f}'}"
                if self.events and value is not None:
                    self.events.add(f"{stage.name}/{name}", value, self._global_step())
        self.console.print(line)

    def _stopping(self, step: int = 0) -> bool:
        """Whether to stop after this step of an epoch."""
        return self._any(self.interrupt.asked, step)

    def _due(self, saved: float) -> bool:
        """Whether a checkpoint is to be written after this step, the last one having been at this time."""
        minutes = self.run.checkpoint_minutes
        return minutes == 0 or self._any(time.monotonic() - saved >= 60 * minutes, self.position.step)

    def _any(self, wish: bool, step: int) -> bool:
        """Whether it is a process's wish after this step of an epoch. Several processes, which stop and save at the
        same one or wait for each other, ask each other as often as they read losses."""
        if self.accelerator.num_processes == 1:
            return wish
        if step % _LOG_STEPS != 0:
            return False
        return int(reduce(torch.tensor(int(wish), device=self.accelerator.device), "sum")) > 0

    def _report(self) -> dict[str, Any] | None:
        last = self.plan.stages[-1]
        # no metrics: the run was killed between its last step and its report
        if self.metrics is None or not last.evaluated or self.plan.final is not None:
            predictor = self.plan.predictor.to(self.accelerator.device)
            self.metrics = evaluate(predictor, self.plan.test, self.groups, len(self.class_counts), self.accelerator)
        if not self.accelerator.is_main_process:
            return None
        times = self._time_losses()
        report = {
            **self.metrics,
            "train_seconds": self.train_seconds,
            **(asdict(times) if times else {field.name: None for field in fields(LossTime)}),
            "class_counts": list(self.class_counts),
            "settings": self.settings,
        }
        self._check_folder()
        write_report(self.out, report, self.facts["class_names"], self.groups)
        return report

    def _written_report(self) -> dict[str, Any] | None:
        """What `metrics.json` holds, if it is of a run of these settings."""
        with suppress(FileNotFoundError, ValueError):
            report = read_metrics(self.out)
            whole = len(report["per_class"]) == len(self.class_counts)
            if whole and (report["settings"], report["class_counts"]) == (self.settings, list(self.class_counts)):
                return report
        return None

    def _time_losses(self) -> LossTime | None:
        """The times of the last stage that has losses, or None.

        None under several processes too: a loss may exchange values with the others, which have no part in this.
        """
        if self.accelerator.num_processes > 1:
            return None
        try:
            for stage in reversed(self.plan.stages):
                if stage.losses():
                    _freeze(stage)
                    stage.to(self.accelerator.device)
                    batch = send_to_device(next(stage.batches.epoch(0, 0)), self.accelerator.device)
                    stage.batches.close()
                    seed_everything(self.run.seed, len(self.plan.stages), _STEP)
                    return time_losses(stage, batch, self.accelerator)
        except Exception as error:  # a method's own code; the trained run deserves its report
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            self.console.print(f"the loss was not timed: {reason}")
        return None

    def _save(self, optimizer: Any | None) -> None:
        if not all(is_finite(p) for p in self.modules.parameters()):
            raise TrainingError(f"a weight is not finite; {self._kept()}. A lower --lr often helps")
        for stage in self.plan.stages:
            stage.before_save()
        if not self.accelerator.is_main_process:
            return
        self._check_folder()
        weights = self.modules.state_dict()
        if bad := next((name for name, value in weights.items() if not is_finite(value)), None):
            raise TrainingError(f"{bad} is not finite; {self._kept()}. A lower --lr often helps")
        scaler = self.accelerator.scaler
        adapted = self.plan.adapted if self.position.stage == len(self.plan.stages) else None
        left_out = set() if adapted is None else adapted.left_out(self.modules)
        if adapted is not None:
            save_adapted(self.out / WEIGHTS, adapted)
        save_checkpoint(
            self.path,
            {
                "settings": self.settings,
                "facts": dict(self.facts),
                "position": vars(self.position),
                "loss_sum": self.loss_sum,
                "train_seconds": self.train_seconds,
                "model": {name: value for name, value in weights.items() if name not in left_out},
                "whole": not left_out,
                "optimizer": optimizer.state_dict() if optimizer is not None else None,
                "scaler": scaler.state_dict() if scaler is not None else None,
            },
        )

    def _load(self) -> dict[str, Any] | None:
        if not os.path.lexists(self.path):
            return None
        saved = load_checkpoint(self.path)
        check_settings(self.path, saved["settings"], self.settings)
        check_data(self.path, saved["facts"], self.facts)
        if "digests" in self.facts and "digests" not in saved["facts"]:
            self.console.print(f"{self.path} does not say what its data were (an older ltfast wrote it): not compared")
        check_position(self.path, saved["position"], self.plan, self.steps_per_epoch)
        load_weights(self.path, self.plan, saved["model"])
        self.position = Position(*(saved["position"][name] for name in ("stage", "epoch", "step")))
        if (saved["optimizer"] is None) != (self.position.epoch == self.position.step == 0):
            expected = "expected a state inside of a stage, and none where it starts"
            raise CheckpointError(f"checkpoint {self.path}: optimizer: {expected}, got the other")
        self.loss_sum, self.train_seconds = float(saved["loss_sum"]), float(saved["train_seconds"])
        if self.position.stage < len(self.plan.stages):
            where = f"epoch {self.position.epoch + 1}, step {self.position.step}"
            self.console.print(f"resuming {self.plan.stages[self.position.stage].name} at {where}")
        return saved

    def _global_step(self) -> int:
        before = zip(self.plan.stages[: self.position.stage], self.steps_per_epoch, strict=False)
        done = sum(stage.optimisation.epochs * steps for stage, steps in before)
        if self.position.stage < len(self.plan.stages):
            done += self.position.epoch * self.steps_per_epoch[self.position.stage] + self.position.step
        return done

    def _check_folder(self) -> None:
        """Before anything is written: the folder is still this run's."""
        if self.lock is not None:
            self.lock.check()

    def _kept(self) -> str:
        return f"the last good checkpoint is {self.path}" if self.path.exists() else "there is no checkpoint yet"

    def _progress(self) -> Progress:
        return Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )


def _freeze(stage: Stage) -> None:
    """Let gradients reach the parameters that the stage trains, and no others."""
    for parameter in stage.parameters():
        parameter.requires_grad_(False)
    for parameter in stage.trained():
        parameter.requires_grad_(True)
