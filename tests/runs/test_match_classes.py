from dataclasses import dataclass

import numpy as np
import pytest
import torch

from ltfast.data import ArrayDataset, DataBundle
from ltfast.errors import InputError
from ltfast.runs.match_classes import match_classes


def bundle(names, labels, named=True):
    data = ArrayDataset(np.zeros((len(labels), 2, 2), dtype=np.uint8), torch.tensor(labels), names)
    return DataBundle(data, data, (0.5,), (0.25,), image_size=2, channels=1, named=named)


@dataclass(frozen=True)
class Classes:
    names: list[str]
    named: bool = True  # not so where the names are only the classes' numbers


def named(*names):
    return Classes(list(names))


def numbered(count):
    return Classes(numbers(count), named=False)


def numbers(count):
    return [str(number) for number in range(count)]


def match(trained, data, labels, own=False, file=None):
    """The names of the classes, and the labels of the data in the classes of the training set."""
    found = match_classes(
        bundle(data.names, labels, data.named), "npz:x", trained.names, trained.named, own=own, class_names=file
    )
    return found[0], found[1].tolist()


SORTED = named(*sorted(numbers(12)))  # as folders come: 0, 1, 10, 11, 2, ...


@pytest.mark.parametrize(
    ("trained", "data", "labels", "expected"),
    [
        (named("a", "b", "c"), named("c", "a", "b"), [0, 1, 2, 2], [2, 0, 1, 1]),
        (named("a", "b", "c"), named("c", "a"), [0, 1, 0], [2, 0, 2]),
        (named("a", "b"), named("z", "b", "a"), [1, 2], [1, 0]),  # no image of z
        (numbered(3), numbered(2), [0, 1], [0, 1]),
        (numbered(2), numbered(3), [0, 1], [0, 1]),
        (named(*numbers(3)), numbered(3), [2, 0], [2, 0]),  # names that are their numbers
        (numbered(3), named(*numbers(2)), [1, 0], [1, 0]),
        (SORTED, named(*numbers(12)), [2, 10, 11], [4, 2, 3]),
        (named("a", "a"), named("a", "a"), [0, 1], [0, 1]),  # the same in the same order
    ],
)
def test_labels_as_in_the_training(trained, data, labels, expected):
    assert match(trained, data, labels) == (trained.names, expected)


@pytest.mark.parametrize(
    ("trained", "data", "labels", "message"),
    [
        (named("a", "b"), named("a", "c"), [0, 1],
         "data: expected only classes of the training set, got test images of 'c'"),
        (numbered(2), numbered(3), [2], "data: .* got test images of '2' in npz:x; .* '0', '1'$"),
        (named("b", "a"), numbered(2), [0], r"class_names: .* of npz:x, .* would be 0 for 'b', 1 for 'a'$"),
        (numbered(2), named("b", "a"), [0], "class_names: .* of the training set, .* would be 0 for 'b', 1 for"),
        (SORTED, numbered(12), [2], "the match would be 0 for '0', 1 for '1', 2 for '10', "),
        (named("a", "b", "a"), named("a", "b"), [0],
         "data: cannot match classes by name, since the training set has 2 classes"),
        (named("a", "b"), named("a", "a"), [0], "data: cannot match classes by name, since npz:x has 2 classes 'a'"),
    ],
)  # fmt: skip
def test_classes_that_cannot_be_matched(trained, data, labels, message):
    with pytest.raises(InputError, match=message):
        match(trained, data, labels)


def test_a_file_names_the_side_that_has_numbers(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("c\na\nb\n")
    assert match(named("a", "b", "c"), numbered(3), [0, 1, 2], file=file) == (["a", "b", "c"], [2, 0, 1])
    # data that have fewer of the classes
    assert match(named("a", "b", "c"), numbered(2), [0, 1], file=file) == (["a", "b", "c"], [2, 0])
    assert match(numbered(3), named("a", "b", "c"), [0, 1, 2], file=file) == (["c", "a", "b"], [1, 2, 0])
    assert match(numbered(3), numbered(3), [0, 1, 2], file=file) == (["c", "a", "b"], [0, 1, 2])
    with pytest.raises(InputError, match=r"names\.txt:4: .* class 3, since npz:x has 4 classes, got the end"):
        match(named("a", "b", "c"), numbered(4), [3], file=file)
    with pytest.raises(
        InputError, match=r"names\.txt:3: expected no more names, since the training set has 2 classes, got 'b'"
    ):
        match(numbered(2), named("a", "b"), [0], file=file)
    with pytest.raises(InputError, match="class_names: expected none"):
        match(named("a", "b"), named("a", "b"), [0], file=file)


def test_the_runs_own_numbers_have_the_names_that_it_was_told():
    assert match(named("b", "a"), numbered(2), [0, 1], own=True) == (["b", "a"], [0, 1])
    with pytest.raises(InputError, match="data: expected the 2 classes of the training set, got 3 in npz:x"):
        match(named("b", "a"), numbered(3), [0], own=True)
