"""Maps the classes of other data to those of the training set."""

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
    """Map the labels of the test images to the classes of the training set.

    Classes are matched by name if both sides have names, and by number if neither has. The test images need not cover
    all classes. Names that equal the labels ("0", "1", ...) are equivalent to numbers.

    Args:
        bundle: the data.
        source: the source of the data, for messages.
        trained: the classes of the training set, length C.
        trained_named: whether these are names; otherwise they are numbers.
        own: whether the data are the run's own, whose numbered classes may have been given names in training.
        class_names: a file with names for the side whose classes are only numbered.

    Returns:
        The names of the classes of the training set, length C, and the labels, (N,) int64, in [0, C).

    Raises:
        InputNotFoundError: there is no such file.
        InputError: only one side has names; a file is given although both sides have names; a class of the test images
            is not in the training set; or two classes have the same name.
    """
    names, named, trained = bundle.class_names, bundle.named, list(trained)
    if own and not named:
        if len(names) > len(trained):  # the test images need not cover all classes
            raise InputError(
                f"expected the {len(trained)} classes of the training set, got {len(names)} in {source}", name="data"
            )
        names, named = trained, trained_named
    if class_names is not None:
        if named and trained_named:
            raise InputError(
                f"expected none, since the classes of {source} and of the training set have names, got {class_names}",
                name="class_names",
            )
        given = read_class_names(class_names)
        if not trained_named:
            check_length(class_names, given, len(trained), "the training set")
            trained = given
        if not named:
            check_length(class_names, given, len(names), source, more=True)
            names = given
    elif named != trained_named:
        numbers, known = ("the training set", names) if named else (source, trained)
        if known != [str(number) for number in range(len(known))]:
            meant = ", ".join(f"{number} for {name!r}" for number, name in enumerate(known[:_SHOWN]))
            raise InputError(
                f"expected a file with a name for each class of {numbers}, whose classes are only numbered although "
                f"the other side has names; without it, the match would be {meant}"
                f"{', ...' if len(known) > _SHOWN else ''}",
                name="class_names",
            )
    if names == trained:
        return trained, bundle.test.labels
    for side, where in ((names, source), (trained, "the training set")):
        name, count = Counter(side).most_common(1)[0]
        if count > 1:
            raise InputError(f"cannot match classes by name, since {where} has {count} classes {name!r}", name="data")
    numbers_of = {name: number for number, name in enumerate(trained)}
    unknown = [
        name for name, count in zip(names, bundle.test.class_counts, strict=False) if count and name not in numbers_of
    ]
    if unknown:
        shown = ", ".join(map(repr, unknown[:_SHOWN])) + (", ..." if len(unknown) > _SHOWN else "")
        raise InputError(
            f"expected only classes of the training set, got test images of {shown} in {source}; "
            f"the training set has {', '.join(map(repr, trained[:_SHOWN]))}{', ...' if len(trained) > _SHOWN else ''}",
            name="data",
        )
    order = torch.tensor([numbers_of.get(name, -1) for name in names])
    return trained, order[bundle.test.labels]
