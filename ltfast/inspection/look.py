"""Everything that is found in a data set."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ltfast.data import ArrayDataset, ImageDataset
from ltfast.data.decode import ImageDecodeError
from ltfast.data.splits import Splits
from ltfast.inspection.counts import describe_classes, shared_groups
from ltfast.inspection.duplicates import Pair, at_each_distance, find_duplicates, kinds
from ltfast.inspection.images import see_all
from ltfast.inspection.sizes import describe_sizes, short_sides
from ltfast.inspection.suggestion import Suggestion, suggest


@dataclass(frozen=True)
class Look:
    """What is found in a data set. Images are numbered through the parts.

    Attributes:
        source: the data set.
        minima: the fewest training images of a class of many and of medium.
        classes: see `describe_classes`.
        origins: where the parts come from, in words, by part.
        sizes: see `describe_sizes`.
        unreadable: the reason for each image that cannot be decoded.
        pairs: equal and similar images.
        complete: whether these are all pairs.
        constant: the images whose pixels are all equal.
        groups: see `shared_groups`.
        left_out: one line about files that were left out; None without any.
        suggestion: how to start training.
        names: the path of each image, or its number in its part.
        parts: the part of each image.
        labels: the class name of each image.
    """

    source: str
    minima: Sequence[int]
    classes: list[dict[str, Any]]
    origins: Mapping[str, str]
    sizes: dict[str, Any]
    unreadable: list[str]
    pairs: list[Pair]
    complete: bool
    constant: list[int]
    groups: dict[str, list[str]]
    left_out: str | None
    suggestion: Suggestion
    names: list[str]
    parts: list[str]
    labels: list[str]

    @property
    def images(self) -> dict[str, int]:
        """The number of images of each part."""
        return {part: self.parts.count(part) for part in dict.fromkeys(self.parts)}

    def as_json(self) -> dict[str, Any]:
        """The findings in plain values."""
        return {
            "source": self.source,
            "images": self.images,
            "origins": dict(self.origins),
            "groups": {"many": self.minima[0], "medium": self.minima[1], "few": 0},
            "classes": self.classes,
            "sizes": self.sizes,
            "unreadable": self.unreadable,
            "duplicates": {kind: self._of_pairs(pairs) for kind, pairs in self.pairs_by_kind().items()},
            "duplicates_complete": self.complete,
            "constant": [self.names[number] for number in self.constant],
            "groups_in_two_parts": self.groups,
            "left_out": self.left_out,
            "suggestion": asdict(self.suggestion),
        }

    def pairs_by_kind(self) -> dict[str, list[Pair]]:
        """The pairs of equal and of similar images."""
        equal = [pair for pair in self.pairs if pair.distance is None]
        return {"equal": equal, "similar": [pair for pair in self.pairs if pair.distance is not None]}

    def rows(self) -> list[list[str]]:
        """The pairs as lines of a table, with a header."""
        header = ["kind", "distance", "path", "part", "class", "path_2", "part_2", "class_2"]
        return [header] + [
            [
                "equal" if pair.distance is None else "similar",
                "" if pair.distance is None else str(pair.distance),
                *(value[end] for end in (pair.first, pair.second) for value in (self.names, self.parts, self.labels)),
            ]
            for pair in self.pairs
        ]

    def _of_pairs(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        found = kinds(pairs, self.parts, self.labels)
        return {
            "pairs": len(pairs),
            "two_parts": {" and ".join(both): number for both, number in found.two_parts.items()},
            "two_classes": found.two_classes,
            "copies": found.copies,
            "at_each_distance": {str(bits): number for bits, number in at_each_distance(pairs).items()},
        }


def look(
    source: str,
    splits: Splits,
    minima: Sequence[int],
    options: Mapping[str, str],
    *,
    threads: int,
    step: Callable[[], None],
) -> Look:
    """Look at all images of a data set.

    Args:
        source: see `ltfast.data.load`.
        splits: its parts.
        minima: see `ltfast.data.class_groups`.
        options: the options of the data on the command line, with their values.
        threads: threads that decode images.
        step: called after each image.

    Raises:
        ImageDecodeError: no training image can be decoded.
    """
    parts: dict[str, ImageDataset] = {
        part: images
        for part, images in (("training", splits.train), ("validation", splits.validation), ("test", splits.test))
        if images is not None
    }
    results = {part: see_all(images, threads, step) for part, images in parts.items()}
    seen = [one for some, _ in results.values() for one in some]
    known = [one for one in seen if one is not None]
    training = [one for one in results["training"][0] if one is not None]
    if not training:
        raise ImageDecodeError(f"no training image can be decoded: {results['training'][1][0]}")
    found = find_duplicates(
        [one and one.content for one in seen],
        [0 if one is None else one.appearance for one in seen],
        [one is not None and one.constant for one in seen],
    )
    return Look(
        source=source,
        minima=minima,
        classes=describe_classes(parts, minima),
        origins=splits.origins,
        sizes=describe_sizes(known),
        unreadable=[reason for _, broken in results.values() for reason in broken.values()],
        pairs=found.pairs,
        complete=found.complete,
        constant=[number for number, one in enumerate(seen) if one is not None and one.constant],
        groups=shared_groups(parts),
        left_out=splits.left_out,
        suggestion=suggest(
            source,
            options,
            counts=splits.train.class_counts,
            sides=short_sides(training),
            grey=all(one.mode in ("1", "L", "LA") for one in training),
            in_files=not isinstance(splits.train, ArrayDataset),
            missing=[name for name, part in (("test", splits.test), ("validation", splits.validation)) if part is None],
            broken=len(known) < len(seen),
        ),
        names=[images.image_name(index) for images in parts.values() for index in range(len(images))],
        parts=[part for part, images in parts.items() for _ in range(len(images))],
        labels=[images.class_names[label] for images in parts.values() for label in images.labels.tolist()],
    )
