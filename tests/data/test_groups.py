import pytest

from ltfast.data import class_groups, group_minima


@pytest.mark.parametrize(
    ("counts", "sizes"),
    [
        ([9, 8, 7, 6, 5, 4, 3, 2, 1], (3, 3, 3)),
        ([90, 80, 70, 60], (1, 2, 1)),
        ([5, 1], (1, 0, 1)),
        ([4, 4, 4, 1, 1, 1], (3, 0, 3)),  # equal counts stay together
        ([9, 5, 5, 5, 5, 1], (1, 4, 1)),
        ([7, 7, 7], (3, 0, 0)),
    ],
)
def test_auto_gives_thirds_of_the_classes(counts, sizes):
    minima = group_minima(counts, "auto")
    assert minima[0] >= minima[1] >= 1
    groups = class_groups(counts, minima)
    assert tuple(map(len, groups.values())) == sizes
    assert list(groups) == ["many", "medium", "few"]


def test_borders():
    assert group_minima([1], (100, 20)) == (101, 20)
    counts = [101, 100, 20, 19]
    assert class_groups(counts, group_minima(counts, (100, 20))) == class_groups(counts)
    for bad in ((20, 100), (5, 0), (5,)):
        with pytest.raises(ValueError, match="groups: expected two falling numbers of images, at least 1, or auto, "):
            group_minima(counts, bad)
