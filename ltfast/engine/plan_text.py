"""A plan in words: what a run trains, in which stages."""

import math
from collections.abc import Collection, Sequence

from ltfast.engine.settings import RunSettings
from ltfast.engine.stage import Plan, Stage


def plan_lines(plan: Plan, run: RunSettings, *, processes: int = 1) -> list[str]:
    """Describe a plan: a line for each stage, and before them one with their sum if there are several.

    Args:
        plan: the stages.
        run: how they are trained.
        processes: the number of processes.
    """
    steps = [stage.optimisation.epochs * math.ceil(len(stage.batches) / run.accumulate) for stage in plan.stages]
    width = max(len(stage.name) for stage in plan.stages) + 1
    lines = [
        f"{f'{stage.name}:':<{width}} {_line(stage, number, run, processes)}"
        for stage, number in zip(plan.stages, steps, strict=True)
    ]
    if len(lines) == 1:
        return [f"plan: {lines[0]}"]
    epochs = sum(stage.optimisation.epochs for stage in plan.stages)
    total = f"plan: {len(lines)} stages, with {epochs:,} epochs and {sum(steps):,} steps in all"
    return [total, *(f"  {line}" for line in lines)]


def _line(stage: Stage, steps: int, run: RunSettings, processes: int) -> str:
    optimisation, setting = stage.optimisation, stage.epochs_setting.replace("_", "-")
    images = optimisation.batch_size * processes * min(run.accumulate, len(stage.batches))
    return (
        f"{optimisation.epochs:,} epoch{'s' * (optimisation.epochs != 1)} (--{setting}), {steps:,} steps of {images:,} "
        f"images; {stage.trains or trained(stage)}; learning rate {optimisation.lr:g}"
    )


def trained(stage: Stage) -> str:
    """What a stage trains: the number of parameters, and the modules to which they belong."""
    parameters = dict(stage.named_parameters())
    own = {id(parameter) for parameter in stage.trained()}
    chosen = {name for name, parameter in parameters.items() if id(parameter) in own}
    number = sum(parameters[name].numel() for name in chosen)
    where = "all" if len(chosen) == len(parameters) else ", ".join(_modules(list(parameters), chosen))
    return f"trains {number:,} parameters ({where})"


def _modules(names: Sequence[str], chosen: Collection[str]) -> list[str]:
    """The largest modules all of whose parameters are chosen, without the names of the modules that contain them."""
    tails: dict[str, list[tuple[str, bool]]] = {}
    for name in names:
        first, _, rest = name.partition(".")
        tails.setdefault(first, []).append((rest, name in chosen))
    found: list[str] = []
    for first, members in tails.items():
        if all(is_chosen for _, is_chosen in members):
            found.append(first)
        elif any(is_chosen for _, is_chosen in members):
            found += _modules([rest for rest, _ in members], {rest for rest, is_chosen in members if is_chosen})
    return found
