"""The class groups for which long-tailed results are reported: many, medium and few."""

from collections.abc import Sequence

from ltfast.ops.core.class_counts import ClassCounts, read_class_counts

MINIMA = (101, 20)  # many: more than 100 images; few: fewer than 20; medium: the rest


def class_groups(class_counts: ClassCounts, minima: Sequence[int] = MINIMA) -> dict[str, list[int]]:
    """Split the classes by their number of training images (Liu et al., "Large-Scale Long-Tailed Recognition in an
    Open World", CVPR 2019).

    Args:
        class_counts: the number of training images of each class, length C; see
            `ltfast.ops.core.class_counts.read_class_counts`.
        minima: the minimum number of images per class in each group except the last, in decreasing order.

    Returns:
        The classes in each group. By default, the groups are `"many"` (more than 100 images), `"medium"` (20 to 100)
        and `"few"` (fewer than 20). If there are not three groups, their names are `"group0"`, `"group1"`, ... Each
        class is in exactly one group; a group may be empty.

    Raises:
        ValueError: a count is negative.
    """
    names = ["many", "medium", "few"] if len(minima) == 2 else [f"group{i}" for i in range(len(minima) + 1)]
    groups: dict[str, list[int]] = {name: [] for name in names}
    for label, count in enumerate(read_class_counts(class_counts).tolist()):
        if not count >= 0:
            raise ValueError(f"class_counts: expected counts of at least 0, got {count:g} for class {label}")
        groups[names[sum(count < minimum for minimum in minima)]].append(label)
    return groups
