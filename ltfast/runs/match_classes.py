"""The classes of other data, in the order of the training's."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ltfast.data import DataBundle
from ltfast.data.class_names import check_length, read_class_names
from ltfast.errors import InputError

_SHOWN = 10


def match_classes(
    bundle: DataBundle,
    source: str,
    trained: Sequence[str],
    trained_named: bool,
    *,
    own: bool,
    class_names: Path | None = None,
) -> tuple[list[str], Tensor]:
    """The labels of test images, numbered as in the training.

    Classes are matched by name where both sides have names, and by number where neither has. The test images may lack
    classes. Names in the order of the numbers ("0", "1", ...) say the same as numbers.

    Args:
        bundle: the data.
        source: its name.
        trained: the training's classes, length C.
        trained_named: these are names; otherwise they are numbers.
        own: the data are those of the training, whose numbers may have been given names there.
        class_names: a file with names for the side that has numbers alone.

    Returns:
        The names of the training's classes, length C, and the labels, (N,) int64, in [0, C).

    Raises:
        InputNotFoundError: there is no such file.
        InputError: one side alone has names, both have and a file is given all the same, a class of the test images is
            not one of the training's, or two classes have one name.
    """
    names, named, trained = bundle.class_names, bundle.named, list(trained)
    if own and not named:
        if len(names) != len(trained):
            raise InputError(
                f"expected the {len(trained)} classes of the training, got {len(names)} in {source}", name="data"
            )
        names, named = trained, trained_named
    if class_names is not None:
        if named and trained_named:
            raise InputError(
                f"expected none, as the classes of {source} and of the training have names, got {class_names}",
                name="class_names",
            )
        given = read_class_names(class_names)
        if not trained_named:
            check_length(class_names, given, len(trained), "the training")
            trained = given
        if not named:
            check_length(class_names, given, len(names), source, more=True)
            names = given
    elif named != trained_named:
        numbers, known = ("the training", names) if named else (source, trained)
        if known != [str(number) for number in range(len(known))]:
            meant = ", ".join(f"{number} for {name!r}" for number, name in enumerate(known[:_SHOWN]))
            raise InputError(
                f"expected a file with a name for each class of {numbers}, which has numbers alone where "
                f"the other side has names; without one, it would take {meant}{', ...' if len(known) > _SHOWN else ''}",
                name="class_names",
            )
    if names == trained:
        return trained, bundle.test.labels
    for side, where in ((names, source), (trained, "the training")):
        name, count = Counter(side).most_common(1)[0]
        if count > 1:
            raise InputError(f"cannot match classes by name, as {where} has {count} classes {name!r}", name="data")
    numbers_of = {name: number for number, name in enumerate(trained)}
    unknown = [
        name for name, count in zip(names, bundle.test.class_counts, strict=False) if count and name not in numbers_of
    ]
    if unknown:
        shown = ", ".join(map(repr, unknown[:_SHOWN])) + (", ..." if len(unknown) > _SHOWN else "")
        raise InputError(
            f"expected the classes of the training, got test images of {shown} besides in {source}; "
            f"the training has {', '.join(map(repr, trained[:_SHOWN]))}{', ...' if len(trained) > _SHOWN else ''}",
            name="data",
        )
    order = torch.tensor([numbers_of.get(name, -1) for name in names])
    return trained, order[bundle.test.labels]
