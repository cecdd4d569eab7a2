"""`ltfast train`."""

import dataclasses
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltfast.cli.errors import UsageError, flag
from ltfast.cli.options import DATA, add_options, as_columns, as_word, options_of
from ltfast.cli.output import check_writable, print_table
from ltfast.cli.parser import asks_help, command_parser, did_you_mean, is_given, value_of
from ltfast.errors import InputNotFoundError, UserError
from ltfast.terminal import say

if TYPE_CHECKING:
    from ltfast.data import DataBundle

# not the docstring, which `python -OO` strips
ABOUT = "train a method on a data set; repeat the command to resume an interrupted run"
# these do not affect the result (the last two beyond rounding)
_NOT_SETTINGS = ("config", "out", "root", "verbose", "workers", "checkpoint_minutes", "fused_classifier", "cache_gib")
_FILES = ("metrics.json", "predictions.csv", "per_class.png", "mistakes.png", "checkpoint.pt", "weights.safetensors")


def train(argv: Sequence[str]) -> int:
    from ltfast.cli.recipes import checked, method_of
    from ltfast.engine import RunSettings
    from ltfast.methods import METHODS, settings_of
    from ltfast.recipe import read_recipe, recipe_names

    asked, config = value_of("--method", argv), value_of("--config", argv)
    # without --data, the digits recipe is a demonstration; its settings (imbalance) must not apply to the user's data
    if config is None and value_of("--data", argv) is None and asked in (None, *METHODS) and not asks_help(argv):
        config = f"{asked or 'ce'}/digits"
    try:
        recipe = None if config is None else read_recipe(config)
    except UserError as error:
        near = did_you_mean(config or "", recipe_names()) if isinstance(error, InputNotFoundError) else ""
        raise UsageError(f"--config {error}{near}") from error
    method = method_of(asked, recipe, METHODS)
    groups = {
        "data": DATA,
        "execution": options_of(RunSettings),
        f"method {method}": options_of(METHODS[method].settings),
    }
    types = {option.name: option.type for options in groups.values() for option in options}
    elsewhere = _elsewhere(method, types)

    parser = command_parser(
        "train",
        ABOUT,
        elsewhere={flag(name): what for name, what in elsewhere.items()},
        usage="ltfast train --out OUT [--method METHOD] [--data DATA] [OPTION ...]",
        epilog=f"These are the options of method {method}. `ltfast train --method M --help` shows those of method M, "
        f"one of {', '.join(METHODS)}.",
    )
    group = parser.add_argument_group("run")
    group.add_argument("--method", default="ce", help=f"one of {', '.join(METHODS)} (default: ce)")
    group.add_argument("--out", required=True, help="folder of the run: checkpoint, metrics.json, predictions.csv, "
                       "pictures, logs")  # fmt: skip
    group.add_argument("--config", help=f"recipe: a YAML file or one of {', '.join(recipe_names())}; "
                       "command-line options override it; default without --data: METHOD/digits")  # fmt: skip
    for title, options in groups.items():
        add_options(parser, title, options)
    if recipe is not None:
        parser.set_defaults(**checked(recipe, method, types, elsewhere))
    args = {**vars(parser.parse(argv)), "method": method}
    out = Path(args["out"])
    if not args["out"]:
        raise UsageError("--out: expected the name of a folder, got ''")

    from ltfast.data.groups import check_borders  # after --help

    try:
        run = RunSettings(**{field.name: args[field.name] for field in dataclasses.fields(RunSettings)})
        fields = dataclasses.fields(METHODS[method].settings)
        settings = settings_of(method, {field.name: args[field.name] for field in fields})
        check_borders(args["groups"])
        check_writable(next(folder for folder in (out, *out.parents) if folder.exists()))
        return _train(method, settings, run, args, out)
    except UserError as error:
        if recipe is None or error.name is None or error.name not in recipe.lines or is_given(flag(error.name), argv):
            raise
        raise UsageError(f"--config {recipe.where(error.name)}: {error}") from error


def continues(out: str) -> bool:
    """Whether the same command continues a run that an interrupted one has left in this folder."""
    return (Path(out) / "checkpoint.pt").exists()


def _elsewhere(method: str, own: Collection[str]) -> dict[str, str]:
    """The settings that only other methods have -> a description with these methods."""
    from ltfast.methods import METHODS

    owners: dict[str, list[str]] = {}
    for name, other in METHODS.items():
        for field in dataclasses.fields(other.settings):
            if field.name not in own:
                owners.setdefault(field.name, []).append(name)
    return {
        setting: f"an option of method{'s' * (len(names) > 1)} {' and '.join(names)}, not of {method}"
        for setting, names in owners.items()
    }


def _train(method: str, settings: Any, run: Any, args: dict[str, Any], out: Path) -> int:
    from ltfast.data import check_images, class_groups, group_minima, load
    from ltfast.engine import identity, loop, report, seeding
    from ltfast.engine.accelerator import make_accelerator
    from ltfast.engine.checkpoint import CHECKPOINT
    from ltfast.engine.plan_text import plan_lines
    from ltfast.engine.selection import check_validation
    from ltfast.methods import METHODS, BuildContext
    from ltfast.methods.fused_classifier import fused_stages
    from ltfast.runs.image_size import with_image_size
    from ltfast.runs.mistakes import draw_mistakes
    from ltfast.runs.normalisation import with_normalisation
    from ltfast.runs.restore import facts_of

    accelerator = make_accelerator(run.precision, deterministic=run.deterministic)
    first = accelerator.is_main_process
    parts = _parts(args)
    with accelerator.main_process_first():  # only the first process downloads
        bundle = load(
            args["data"],
            imbalance=args["imbalance"],
            profile=args["profile"],
            root=args["root"],
            class_names=args["class_names"],
            **parts,
        )
    settings = settings.with_files_read(bundle)
    chosen = {name: value for name, value in args.items() if name not in _NOT_SETTINGS}
    chosen["class_weights"] = settings.class_weights  # not the path of a file
    continues = (out / CHECKPOINT).exists()
    # check before the processes divide work that depends on these settings
    identity.check_processes(chosen, accelerator, hint=identity.SAME_COMMAND)
    identity.check_processes({"checkpoint": continues}, accelerator, hint=identity.same_folder(out))
    if args["skip_broken"] or not continues:  # a resumed run has already checked the headers
        bundle = check_images(bundle, skip_broken=args["skip_broken"])
    bundle, why = with_image_size(bundle, settings, out / CHECKPOINT)
    bundle, normalisation = with_normalisation(bundle, settings, args["mean"], args["std"], out / CHECKPOINT)
    counts = bundle.class_counts
    minima = group_minima(counts, args["groups"])
    groups = class_groups(counts, minima)
    check_validation(run, None if bundle.validation is None else bundle.validation.class_counts, groups)
    asked = settings
    if getattr(settings, "group_minima", None) == "auto":
        settings = dataclasses.replace(settings, group_minima=minima)
        chosen["group_minima"] = minima
    if first:
        say(f"{method} on {args['data']}: {_description(bundle)}; {accelerator.device}, {run.precision}")
        if bundle.left_out is not None:
            say(bundle.left_out)
        if args["groups"] == "auto":
            say(f"chosen by auto: --groups {minima[0] - 1},{minima[1]}")
        if words := _chosen_by_auto(asked, settings.chosen(bundle)):
            say(f"chosen by auto: {words}{why}")
        if normalisation:
            say(f"chosen by auto: {normalisation}, as the pretrained weights were trained")
    seeding.seed_everything(run.seed)
    plan = METHODS[method].build(
        settings, bundle, BuildContext(run, accelerator.process_index, accelerator.num_processes)
    )
    if first:
        if run.fused_classifier == "auto" and (fused := fused_stages(plan.stages)):
            say(f"chosen by auto: --fused-classifier on, for {', '.join(fused)}")
        for line in plan_lines(plan, run, processes=accelerator.num_processes):
            say(line)
    metrics = loop.train(
        plan,
        run=run,
        settings=_identity(chosen, bundle),
        # the processes of a machine see the same files, so only one of them reads the sizes
        facts=facts_of(bundle, args["data"], args["root"], parts, minima, sizes=accelerator.is_local_main_process),
        class_counts=counts,
        groups=groups,
        out=out,
        accelerator=accelerator,
        image_name=bundle.test.image_name,
    )
    if first and metrics is not None:
        if not (out / report.MISTAKES).exists():  # while the images are at hand
            draw_mistakes(out, metrics, bundle.test)
        print_table(report.table({str(out): metrics}, title="top-1 accuracy (%)"))
        say(f"written to {out}: {', '.join(name for name in _FILES if (out / name).exists())}, TensorBoard events")
    accelerator.end_training()
    return 130 if first and metrics is None else 0


def _parts(args: dict[str, Any]) -> dict[str, Any]:
    """The options that divide the images into training, validation and test images, as `ltfast.data.load` takes them;
    those that were given."""
    parts = {name: args[name] for name in ("test", "validation", "test_fraction", "folds", "fold")}
    parts["columns"] = as_columns(args["columns"])
    return {name: value for name, value in parts.items() if value is not None}


def _description(bundle: "DataBundle") -> str:
    """The images of each part, the classes, and where validation and test images come from."""
    counts = bundle.class_counts
    names = f" ({', '.join(bundle.class_names[:5])}{', ...' if len(counts) > 5 else ''})" if bundle.named else ""
    parts = {"validation": bundle.validation, "test": bundle.test}
    others = (
        f", {len(images)} {part} images" + (f" ({bundle.origins[part]})" if part in bundle.origins else "")
        for part, images in parts.items()
        if images is not None
    )
    return (
        f"{len(bundle.train)} training images in {len(counts)} classes{names} of {max(counts)} to {min(counts)}"
        f"{''.join(others)}"
    )


def _chosen_by_auto(asked: Any, chosen: Any) -> str:
    """The values chosen for settings that were "auto", as command-line options."""
    values = {field.name: getattr(chosen, field.name) for field in dataclasses.fields(asked)
              if getattr(asked, field.name) == "auto"}  # fmt: skip
    return " ".join(f"{flag(name)} {as_word(value)}" for name, value in values.items() if value != "auto")


def _identity(chosen: dict[str, Any], bundle: "DataBundle") -> dict[str, Any]:
    """The settings by which a run is recognised, as they are read from a checkpoint or from metrics.json."""
    identity = {**chosen, "class_counts": bundle.class_counts}
    if chosen["class_names"] is not None:
        identity["class_names"] = bundle.class_names  # the names identify the run, not the path of the file
    for start in ("init", "weights"):
        if chosen[start] is not None:
            identity[start] = str(Path(chosen[start]).expanduser().resolve())  # an absolute path works from any folder
    normalised: dict[str, Any] = json.loads(json.dumps(identity))
    return normalised
