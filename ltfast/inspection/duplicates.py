"""The same image twice: exactly, by the decoded pixels, or nearly, by a perceptual hash."""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MOST_BITS = 4  # of 64 in which the perceptual hashes of near duplicates may differ
_MOST_PAIRS = 500_000
_BANDS = 6  # two of them are equal where at most four bits differ
_MOST_STEPS = 2000

_ONES = np.array([bin(byte).count("1") for byte in range(256)], dtype=np.uint8)


class Pair(NamedTuple):
    """Two images that are the same or nearly so.

    Attributes:
        first, second: their numbers; `first` is the smaller one.
        distance: the number of bits in which their perceptual hashes differ; None if their pixels are equal.
    """

    first: int
    second: int
    distance: int | None


class Duplicates(NamedTuple):
    """The pairs of a data set.

    Attributes:
        pairs: of equal images, each with the first of them; and of similar images, of each content the first.
        complete: whether these are all. A data set with very many similar images has more.
    """

    pairs: list[Pair]
    complete: bool


def find_duplicates(
    contents: Sequence[bytes | None], appearances: Sequence[int], constant: Sequence[bool]
) -> Duplicates:
    """Find equal and similar images.

    Args:
        contents: the hash of the pixels of each image, None for an image without one; length N.
        appearances: the perceptual hash of each image, 64 bits; length N.
        constant: whether all pixels of an image are equal; length N. Such images are not similar to others, since a
            perceptual hash of them means nothing.
    """
    known: dict[bytes, int] = {}
    pairs = []
    for number, content in enumerate(contents):
        if content is not None and (before := known.setdefault(content, number)) != number:
            pairs.append(Pair(before, number, None))
    numbers = np.array([number for number in known.values() if not constant[number]], dtype=np.int64)
    hashes = np.array([appearances[number] for number in numbers], dtype=np.uint64)
    near, distances, complete = near_pairs(hashes)
    ends = zip(numbers[near].tolist(), distances.tolist(), strict=True)
    pairs += [Pair(first, second, distance) for (first, second), distance in ends]
    return Duplicates(pairs, complete)


def near_pairs(hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64], bool]:
    """The pairs of hashes that differ in at most `MOST_BITS` bits.

    The 64 bits are divided into six bands. Where four bits differ, at least two bands are equal. The hashes are
    therefore sorted by each two of the bands, and compared with their neighbours of equal bands only.

    Args:
        hashes: (N,).

    Returns:
        The positions of the pairs, (P, 2), the smaller one first; the number of bits in which they differ, (P,); and
        whether these are all. Of equal hashes, only the first is compared with others, and with each of those equal
        to it.
    """
    values, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    others = np.flatnonzero(first[inverse] != np.arange(len(hashes)))
    found = [np.stack([first[inverse[others]], others], axis=1)]
    distances = [np.zeros(len(others), dtype=np.int64)]
    complete = True
    places = _band_masks()
    codes = np.zeros(0, dtype=np.int64)
    for some in combinations(places, 2):
        keys = values & np.uint64(some[0] | some[1])
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        left = np.flatnonzero(keys[1:] == keys[:-1])
        step = 1
        while len(left):
            if step > _MOST_STEPS or len(codes) > _MOST_PAIRS:
                complete = False
                break
            a, b = order[left], order[left + step]
            near = _differing(values[a], values[b]) <= MOST_BITS
            low, high = np.minimum(a[near], b[near]), np.maximum(a[near], b[near])
            codes = np.union1d(codes, low * len(values) + high)
            step += 1
            left = left[left + step < len(keys)]
            left = left[keys[left + step] == keys[left]]
    a, b = np.divmod(codes, max(len(values), 1))
    distances.append(_differing(values[a], values[b]))
    ends = np.stack([first[a], first[b]], axis=1)
    ends.sort(axis=1)
    found.append(ends)
    pairs, bits = np.concatenate(found)[:_MOST_PAIRS], np.concatenate(distances)[:_MOST_PAIRS]
    order = np.lexsort((pairs[:, 1], pairs[:, 0], bits))
    return pairs[order], bits[order], complete and sum(map(len, found)) <= _MOST_PAIRS


def _band_masks() -> list[int]:
    borders = [round(64 * band / _BANDS) for band in range(_BANDS + 1)]
    return [(1 << high) - (1 << low) for low, high in pairwise(borders)]


def _differing(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The number of bits in which the values differ, (N,)."""
    return _ONES[np.bitwise_xor(a, b).view(np.uint8).reshape(-1, 8)].sum(axis=1, dtype=np.int64)


class Kinds(NamedTuple):
    """How many pairs are of which kind; a pair may be in two parts and have two classes.

    Attributes:
        two_parts: pairs of which one image is in one part (training, validation, test) and one in another, by parts.
        two_classes: pairs with different labels.
        copies: pairs in one part with one label.
    """

    two_parts: dict[tuple[str, str], int]
    two_classes: int
    copies: int


def kinds(pairs: Sequence[Pair], parts: Sequence[str], labels: Sequence[str]) -> Kinds:
    """Count pairs by their kind.

    Args:
        pairs: the pairs.
        parts, labels: the part and the label of each image, length N.
    """
    ends = [(parts[pair.first], parts[pair.second], labels[pair.first], labels[pair.second]) for pair in pairs]
    return Kinds(
        dict(Counter((one, other) for one, other, *_ in ends if one != other)),
        sum(label != other for *_, label, other in ends),
        sum(one == other and label == another for one, other, label, another in ends),
    )


def at_each_distance(pairs: Sequence[Pair]) -> dict[int, int]:
    """The number of similar pairs at each distance."""
    return dict(sorted(Counter(pair.distance for pair in pairs if pair.distance is not None).items()))
