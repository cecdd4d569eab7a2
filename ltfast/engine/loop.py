"""The training loop.

The randomness of a step is a function of (seed, stage, step), and a batch is one of (seed, epoch, place in the epoch).
A checkpoint therefore contains the weights, the optimiser's state and the position, and a run that was killed and
resumed ends with the same weights as an uninterrupted run, bit for bit on a CPU.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, find_batch_size, send_to_device
from torch import Tensor, nn

from ltfast.engine.average import WeightAverage
from ltfast.engine.checkpoint import CHECKPOINT, WEIGHTS
from ltfast.engine.estimate import Estimate
from ltfast.engine.finite import check_losses, check_scale
from ltfast.engine.identity import SAME_COMMAND, check_processes, run_identity, same_folder
from ltfast.engine.interrupt import Interrupt, graceful_interrupt
from ltfast.engine.lock import Lock, locked
from ltfast.engine.log import Log
from ltfast.engine.metrics import evaluate
from ltfast.engine.plot import plot_per_class
from ltfast.engine.position import Position
from ltfast.engine.report import METRICS, PICTURE, describe_groups, finished_report, write_report
from ltfast.engine.run_checkpoint import RunCheckpoint
from ltfast.engine.seeding import seed_everything
from ltfast.engine.selection import Selection
from ltfast.engine.settings import RunSettings
from ltfast.engine.stage import Plan, Predictor, Stage, freeze_untrained, replicated_names
from ltfast.engine.sync_batch_norm import synchronise_batch_norm
from ltfast.engine.timing import time_last_losses
from ltfast.engine.votes import VOTE_STEPS, any_process
from ltfast.evaluation.measures import measures
from ltfast.evaluation.outcome import Outcome
from ltfast.evaluation.predictions import PREDICTIONS, write_predictions
from ltfast.evaluation.scores import Scores
from ltfast.files import remove_partial_files
from ltfast.ops.core.torch_internals import leave_to_processes
from ltfast.progress import in_words

_LOG_STEPS = VOTE_STEPS  # losses are read every so many steps, because reading one waits for the GPU
_START, _EPOCH, _STEP = range(3)  # what a seed is for


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
    image_name: Callable[[int], str] = str,
) -> dict[str, Any] | None:
    """Train a plan's stages, from the checkpoint in `out` if there is one, and write the run's report.

    Args:
        plan: stages, validation and test batches; the stages' initial weights already depend on `run.seed`.
        run: how to run.
        settings: all settings that decide the result, as values of JSON; a checkpoint of other settings is refused.
        facts: what `ltfast eval` needs to know about the data, as plain values, which the checkpoint stores. Its
            `digests`, the hash of each part of the data by name, must be the same when the run continues.
        class_counts: training images of each class, length C.
        groups: class indices of each group.
        out: the run's folder, which is created if it does not exist.
        accelerator: from `make_accelerator(run.precision)`.
        image_name: what identifies a test image in `predictions.csv`, from its place in the test set.

    Returns:
        What `metrics.json` holds; None in processes other than the first, and if the user interrupted the run.

    Raises:
        CheckpointError: the checkpoint is damaged or belongs to other settings or data.
        InputError: the processes have different settings, data, versions or checkpoints; it is raised in all of them.
        TrainingError: a loss or a weight is not finite; the last good checkpoint is kept.
        FolderError: another run is writing to `out`, or `out` was deleted or replaced under this one.
        OSError: a file cannot be written, and the last checkpoint is whole.
    """
    # the number of processes changes the batches
    settings = {**settings, "processes": accelerator.num_processes}
    check_processes(run_identity(run, settings, facts, class_counts), accelerator, hint=SAME_COMMAND)
    with locked(out) if accelerator.is_main_process else nullcontext() as lock:
        return _Run(plan, run, settings, facts, class_counts, groups, out, accelerator, lock, image_name).execute()


@dataclass(eq=False)
class _Run:
    plan: Plan
    run: RunSettings
    settings: Mapping[str, Any]
    facts: Mapping[str, Any]
    class_counts: Sequence[int]
    groups: Mapping[str, Sequence[int]]
    out: Path
    accelerator: Accelerator
    lock: Lock | None
    image_name: Callable[[int], str]

    def __post_init__(self) -> None:
        plan, run, accelerator = self.plan, self.run, self.accelerator
        if run.sync_batchnorm and accelerator.num_processes > 1:
            synchronise_batch_norm(nn.ModuleList(plan.stages), accelerator.device)
        self.steps_per_epoch = [math.ceil(len(stage.batches) / run.accumulate) for stage in plan.stages]
        self.position = Position()
        self.loss_sum = 0.0  # over the steps of this epoch
        self.train_seconds = 0.0
        self.metrics: dict[str, Any] | None = None
        self.average: WeightAverage | None = None  # of the current stage
        self.scores: Scores | None = None  # of the last evaluation
        self.interrupt = Interrupt()
        # called before anything is written: checks that the folder still belongs to this run
        self.check_folder = (lambda: None) if self.lock is None else self.lock.check
        self.log = Log(first=accelerator.is_main_process, check_folder=self.check_folder)
        self.console = self.log.console
        self.estimate = Estimate(self.console.print)
        self.selection = Selection(run, plan)
        self.checkpoint = RunCheckpoint(
            self.out, plan, self.settings, self.facts, accelerator, self.check_folder, self.selection
        )

    def execute(self) -> dict[str, Any] | None:
        main = self.accelerator.is_main_process
        if main:
            remove_partial_files(self.out, (CHECKPOINT, WEIGHTS, METRICS, PICTURE, PREDICTIONS))
        saved = self._load()
        finished = self.position.stage == len(self.plan.stages)
        report = finished_report(self.out, self.settings, self.class_counts) if finished else None
        checkpoint = saved and {**saved["position"], "train_seconds": saved["train_seconds"]}
        own = {"checkpoint": checkpoint, "finished": report is not None}
        check_processes(own, self.accelerator, hint=same_folder(self.out))
        if report is not None:
            self.console.print(f"{self.out} holds a finished run of these settings: nothing to do")
            if main and not (self.out / PICTURE).exists():
                plot_per_class(self.out / PICTURE, report, self.facts["class_names"], self.groups)
            return report
        if saved is None and main:
            for name in (METRICS, PICTURE):  # they belong to a run whose checkpoint was deleted
                (self.out / name).unlink(missing_ok=True)
        # steps that a killed run logged after its checkpoint are logged again: purge them
        self.log.start_events(self.out, purge_step=self._global_step() if saved else None)
        with graceful_interrupt(alone=self.accelerator.num_processes == 1) as self.interrupt:
            for stage in self.plan.stages[self.position.stage :]:
                done = self._train_stage(stage, saved)
                stage.batches.close()
                if not done:
                    self.console.print(f"stopped at {self.position}; the same command continues from there")
                    return None
                saved = None
        return self._report()

    def _load(self) -> dict[str, Any] | None:
        saved = self.checkpoint.load(self.steps_per_epoch, self.console)
        if saved is not None:
            self.position = Position(*(saved["position"][name] for name in ("stage", "epoch", "step")))
            self.loss_sum, self.train_seconds = float(saved["loss_sum"]), float(saved["train_seconds"])
            if self.position.stage < len(self.plan.stages):
                self.console.print(f"resuming {self.plan.stages[self.position.stage].name} at {self.position}")
        return saved

    def _train_stage(self, stage: Stage, saved: dict[str, Any] | None) -> bool:
        """Train a stage to its end. Returns False if the user interrupted it."""
        number = self.position.stage
        model, optimizer, scheduler = self._prepare(stage, saved)
        replicated = replicated_names(stage)
        done = self.position.epoch * self.steps_per_epoch[number] + self.position.step
        self.estimate.begin(stage.name, stage.optimisation.epochs * self.steps_per_epoch[number] - done)
        for epoch in range(self.position.epoch, stage.optimisation.epochs):
            stage.epoch = epoch
            if self.position.step == 0:
                seed_everything(self.run.seed, number, _EPOCH, epoch)
                stage.start_epoch()
            loss = self._train_epoch(stage, model, optimizer, scheduler)
            if loss is None:
                return False
            sent = [buffer for name, buffer in stage.named_buffers() if name not in replicated]
            broadcast(sent)  # all processes evaluate the weights in the checkpoint
            last = epoch + 1 == stage.optimisation.epochs
            step = self._global_step()
            self.metrics = None
            with self._averaged(sent):
                if stage.evaluated and self.plan.validation is not None:  # before the checkpoint, which has the choice
                    self.metrics = self._evaluate(stage, self.plan.validation)
                    last = self.selection.end_epoch(stage, epoch + 1, self.metrics)
            if last and self.average is not None:
                self.average.swap()
                self.average = None
            self.position = Position(number + 1) if last else Position(number, epoch + 1)
            self._save(None if last else optimizer)
            if stage.evaluated and self.plan.validation is None:
                with self._averaged(sent):
                    self.metrics = self._evaluate(stage, self.plan.test)
            self._log_epoch(stage, epoch, loss, step)
            if self.position.stage < len(self.plan.stages) and any_process(self.interrupt.asked, 0, self.accelerator):
                return False
            if last:
                break
        if self.position.stage < len(self.plan.stages):
            self.accelerator.free_memory()  # otherwise it keeps this stage's optimiser
        return True

    @contextmanager
    def _averaged(self, buffers: Sequence[Tensor]) -> Iterator[None]:
        """The stage has the average of its weights, if there is one. `buffers` are to be equal in all processes."""
        if self.average is None:
            yield
            return
        self.average.swap()
        broadcast(buffers)
        yield
        self.average.swap()

    def _prepare(self, stage: Stage, saved: dict[str, Any] | None) -> tuple[nn.Module, Any, Any]:
        """Start or resume a stage. Returns the model, optimiser and scheduler of its training."""
        number = self.position.stage
        freeze_untrained(stage)
        stage.to(self.accelerator.device)
        resumed = saved is not None and saved["optimizer"] is not None
        if not resumed:
            seed_everything(self.run.seed, number, _START)
            stage.start()
        if self.run.compile:
            torch.compiler.reset()  # forget the stage before
            stage.compile(fullgraph=True)  # in place, so that names do not change
        leave_to_processes(stage, replicated_names(stage))
        model, optimizer = self.accelerator.prepare(stage, stage.optimizer())
        scheduler = stage.optimisation.make_scheduler(optimizer, self.steps_per_epoch[number])
        if self.run.ema is not None:
            self.average = WeightAverage(stage, self.run.ema)
        if saved is not None and resumed:
            self.checkpoint.load_optimizer(saved, optimizer)
            if self.average is not None:
                self.average.load_state_dict(self.checkpoint.path, saved.get("average"))
        return model, optimizer, scheduler

    def _train_epoch(self, stage: Stage, model: nn.Module, optimizer: Any, scheduler: Any) -> float | None:
        """Train the rest of an epoch. Returns its mean loss, or None if the user interrupted it."""
        epoch, steps = self.position.epoch, self.steps_per_epoch[self.position.stage]
        batches = stage.batches.epoch(epoch, self.position.step * self.run.accumulate)
        trained = [p for p in stage.parameters() if p.requires_grad]
        window: list[dict[str, Tensor]] = []
        total = torch.tensor(self.loss_sum, device=self.accelerator.device)
        begun = saved = time.monotonic()
        model.train()
        self.estimate.pause()

        def note() -> str:
            left = self.estimate.seconds_left
            several = f" of {stage.name}" if len(self.plan.stages) > 1 else ""
            time_left = "" if left is None else f", {in_words(left)} left{several}"
            return f"step {self.position.step}/{steps}, loss {float(total) / self.position.step:.4f}{time_left}"

        with self.console.progress(note) as progress:
            task = progress.add_task(f"{stage.name} {epoch + 1}/{stage.optimisation.epochs}", total=steps)
            progress.update(task, completed=self.position.step)
            while self.position.step < steps:
                done = epoch * steps + self.position.step
                scheduler.step_update(done)
                logged = self._step(stage, model, optimizer, batches, trained, done)
                stage.after_step()
                if self.average is not None:
                    self.average.update(done + 1)
                self.position.step += 1
                total += logged["loss"]
                self.estimate.step()
                window.append(logged)
                progress.advance(task)
                last = self.position.step == steps
                due = self._due(saved)
                stopping = not last and any_process(self.interrupt.asked, self.position.step, self.accelerator)
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
        self, stage: Stage, model: nn.Module, optimizer: Any, batches: Any, trained: Sequence[nn.Parameter], done: int
    ) -> dict[str, Tensor]:
        """Make an optimiser step, after `done` steps of the stage. Returns the values to log, on the device."""
        window = list(islice(batches, self.run.accumulate))
        sizes = [find_batch_size(batch) for batch in window]
        sums: dict[str, Tensor] = {}
        for i, batch in enumerate(window):
            parts = sum(sizes) / sizes[i]  # not its inverse: for equal batches this is exactly their number
            batch = stage.batches.finish(send_to_device(batch, self.accelerator.device, non_blocking=True))
            seed_everything(self.run.seed, self.position.stage, _STEP, done, i, self.accelerator.process_index)
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
        """Log the steps in the window. Raises a TrainingError if a loss is not finite, or every gradient overflows."""
        losses = torch.stack([logged["loss"] for logged in window]).tolist()
        step, where = self.position.step, f"stage {stage.name!r}, epoch {self.position.epoch + 1}"
        check_losses(losses, where, step - len(losses) + 1, self.checkpoint.path)
        check_scale(self.accelerator.scaler, f"{where}, step {step}", self.checkpoint.path)
        self.log.steps(stage.name, window, lr, self._global_step())
        window.clear()

    def _log_epoch(self, stage: Stage, epoch: int, loss: float, step: int) -> None:
        validation = self.plan.validation is not None
        names = dict.fromkeys(("top1", *self.groups, *([self.run.metric] if validation else [])))
        number = f"{epoch + 1}/{stage.optimisation.epochs}"
        self.log.epoch(stage.name, number, loss, self.metrics, names, step, validation=validation)
        ended = self.selection.epochs.get(stage.name)
        if ended is not None and ended != dict.fromkeys(ended, stage.optimisation.epochs):
            self.console.print(f"{stage.name} ends after epoch {ended['trained']} and keeps epoch {ended['kept']}")

    def _evaluate(self, predictor: Predictor, images: Iterable[Sequence[Tensor]]) -> dict[str, Any]:
        classes = len(self.class_counts)
        # the scores of the test images at the end of the run are reported
        ended = images is self.plan.test and self.position.stage == len(self.plan.stages)
        self.scores = Scores(classes) if ended else None
        each = None if self.scores is None else self.scores.add
        return evaluate(predictor, images, self.groups, classes, self.accelerator, each)

    def _due(self, saved: float) -> bool:
        """Whether a checkpoint must be written after this step, when the last one was written at time `saved`."""
        minutes = self.run.checkpoint_minutes
        late = time.monotonic() - saved >= 60 * minutes
        return minutes == 0 or any_process(late, self.position.step, self.accelerator)

    def _report(self) -> dict[str, Any] | None:
        # there are no metrics if the last stage is not evaluated, or the run was killed after its last step
        chosen: dict[str, Any] = {}
        if self.metrics is None or self.plan.final is not None or self.plan.validation is not None:
            predictor = self.plan.predictor.to(self.accelerator.device)
            if self.plan.validation is not None:
                metrics = self._evaluate(predictor, self.plan.validation)
                chosen = {"validation": metrics, "epochs": self.selection.epochs}
            self.metrics = self._evaluate(predictor, self.plan.test)
        assert self.scores is not None
        found = self.scores.gathered(self.accelerator)
        if found is None:
            return None
        outcome = Outcome(*found, self.plan.predictor.score_scale)
        names = self.facts["class_names"]
        seed = (self.run.seed, len(self.plan.stages), _STEP)
        report = {
            **self.metrics,
            **chosen,
            **measures(outcome, names, self.class_counts, self.groups),
            "train_seconds": self.train_seconds,
            **time_last_losses(self.plan.stages, self.accelerator, seed=seed, say=self.console.print),
            "class_counts": list(self.class_counts),
            "groups": describe_groups(self.groups, self.facts.get("group_minima")),
            "settings": self.settings,
            **({"root": self.facts["root"]} if "root" in self.facts else {}),
        }
        self.check_folder()
        write_predictions(self.out / PREDICTIONS, outcome, names, self.image_name)
        write_report(self.out, report, names, self.groups)
        return report

    def _save(self, optimizer: Any | None) -> None:
        self.checkpoint.save(
            self.position,
            optimizer,
            loss_sum=self.loss_sum,
            train_seconds=self.train_seconds,
            average=self.average,
        )

    def _global_step(self) -> int:
        planned = {stage.name: stage.optimisation.epochs for stage in self.plan.stages}
        trained = {name: ended["trained"] for name, ended in self.selection.epochs.items()}
        return self.position.global_step(list({**planned, **trained}.values()), self.steps_per_epoch)
