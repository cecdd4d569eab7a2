import numpy as np
import pytest
import torch

from ltfast.data import ArrayDataset, DataBundle
from ltfast.errors import InputError
from ltfast.runs.match_classes import match_classes


def bundle(names, labels, named=True):
    data = ArrayDataset(np.zeros((len(labels), 2, 2), dtype=np.uint8), torch.tensor(labels), names)
    return DataBundle(data, data, (0.5,), (0.25,), image_size=2, channels=1, named=named)


def match(trained, trained_named, names, named, labels, own=False, file=None):
    found = match_classes(bundle(names, labels, named), "npz:x", trained, trained_named, own=own, class_names=file)
    return found[0], found[1].tolist()


def numbers(count):
    return [str(number) for number in range(count)]


@pytest.mark.parametrize(
    ("trained", "trained_named", "names", "named", "labels", "expected"),
    [
        (["a", "b", "c"], True, ["c", "a", "b"], True, [0, 1, 2, 2], [2, 0, 1, 1]),
        (["a", "b", "c"], True, ["c", "a"], True, [0, 1, 0], [2, 0, 2]),
        (["a", "b"], True, ["z", "b", "a"], True, [1, 2], [1, 0]),  # no image of z
        (numbers(3), False, numbers(2), False, [0, 1], [0, 1]),
        (numbers(2), False, numbers(3), False, [0, 1], [0, 1]),
        (numbers(3), True, numbers(3), False, [2, 0], [2, 0]),  # names that equal the numbers
        (numbers(3), False, numbers(2), True, [1, 0], [1, 0]),
        (sorted(numbers(12)), True, numbers(12), True, [2, 10, 11], [4, 2, 3]),
        (["a", "a"], True, ["a", "a"], True, [0, 1], [0, 1]),  # the same in the same order
    ],
)
def test_labels_as_in_the_training(trained, trained_named, names, named, labels, expected):
    assert match(trained, trained_named, names, named, labels) == (trained, expected)


@pytest.mark.parametrize(
    ("trained", "trained_named", "names", "named", "labels", "message"),
    [
        (
            ["a", "b"],
            True,
            ["a", "c"],
            True,
            [0, 1],
            "data: expected only classes of the training set, got test images of 'c'",
        ),
        (numbers(2), False, numbers(3), False, [2], "data: .* got test images of '2' in npz:x; .* '0', '1'$"),
        (["b", "a"], True, numbers(2), False, [0], r"class_names: .* of npz:x, .* would be 0 for 'b', 1 for 'a'$"),
        (
            numbers(2),
            False,
            ["b", "a"],
            True,
            [0],
            "class_names: .* of the training set, .* the match would be 0 for 'b', 1 for",
        ),
        # the folders 0 to 11 sorted by name: class 2 is 10
        (sorted(numbers(12)), True, numbers(12), False, [2], "the match would be 0 for '0', 1 for '1', 2 for '10', "),
        (
            ["a", "b", "a"],
            True,
            ["a", "b"],
            True,
            [0],
            "data: cannot match classes by name, since the training set has 2 classes",
        ),
        (["a", "b"], True, ["a", "a"], True, [0], "data: cannot match classes by name, since npz:x has 2 classes 'a'"),
    ],
)
def test_classes_that_cannot_be_matched(trained, trained_named, names, named, labels, message):
    with pytest.raises(InputError, match=message):
        match(trained, trained_named, names, named, labels)


def test_a_file_names_the_side_that_has_numbers(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("c\na\nb\n")
    assert match(["a", "b", "c"], True, numbers(3), False, [0, 1, 2], file=file) == (["a", "b", "c"], [2, 0, 1])
    # data with fewer classes
    assert match(["a", "b", "c"], True, numbers(2), False, [0, 1], file=file) == (["a", "b", "c"], [2, 0])
    assert match(numbers(3), False, ["a", "b", "c"], True, [0, 1, 2], file=file) == (["c", "a", "b"], [1, 2, 0])
    assert match(numbers(3), False, numbers(3), False, [0, 1, 2], file=file) == (["c", "a", "b"], [0, 1, 2])
    with pytest.raises(InputError, match=r"names\.txt:4: .* class 3, since npz:x has 4 classes, got the end"):
        match(["a", "b", "c"], True, numbers(4), False, [3], file=file)
    with pytest.raises(
        InputError, match=r"names\.txt:3: expected no more names, since the training set has 2 classes, got 'b'"
    ):
        match(numbers(2), False, ["a", "b"], True, [0], file=file)
    with pytest.raises(InputError, match="class_names: expected none"):
        match(["a", "b"], True, ["a", "b"], True, [0], file=file)


def test_the_runs_own_numbers_have_the_names_that_it_was_told():
    assert match(["b", "a"], True, numbers(2), False, [0, 1], own=True) == (["b", "a"], [0, 1])
    with pytest.raises(InputError, match="data: expected the 2 classes of the training set, got 3 in npz:x"):
        match(["b", "a"], True, numbers(3), False, [0], own=True)
