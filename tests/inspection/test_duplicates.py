import time

import numpy as np
import pytest

from ltfast.inspection import duplicates
from ltfast.inspection.duplicates import MOST_BITS, Kinds, Pair, at_each_distance, find_duplicates, kinds, near_pairs


@pytest.mark.parametrize("seed", range(3))
def test_near_pairs_are_those_of_all_pairs(seed):
    random = np.random.default_rng(seed)
    hashes = random.integers(0, 2**64, 300, dtype=np.uint64)
    for i in range(150, 300):  # others in which 0 to 6 bits differ
        bits = random.choice(64, random.integers(0, 7), replace=False)
        hashes[i] = hashes[i - 150] ^ np.uint64(sum(1 << int(bit) for bit in bits))
    expected = {}
    for i in range(300):
        for j in range(i + 1, 300):
            bits = int(hashes[i] ^ hashes[j]).bit_count()
            if bits <= MOST_BITS:
                expected[i, j] = bits
    pairs, bits, complete = near_pairs(hashes)
    assert {tuple(pair): one for pair, one in zip(pairs.tolist(), bits.tolist(), strict=True)} == expected
    assert len(set(expected.values())) == 5
    assert complete


def test_equal_hashes_are_paired_with_the_first():
    hashes = np.array([7, 0, 0, 0, 1], dtype=np.uint64)
    pairs, bits, complete = near_pairs(hashes)
    assert pairs.tolist() == [[1, 2], [1, 3], [1, 4], [0, 4], [0, 1]]
    assert bits.tolist() == [0, 0, 1, 2, 3]
    assert complete
    for number in (0, 1):
        pairs, bits, complete = near_pairs(hashes[:number])
        assert (pairs.shape, bits.shape, complete) == ((0, 2), (0,), True)


def test_very_many_similar_images_end(monkeypatch):
    monkeypatch.setattr(duplicates, "_MOST_PAIRS", 1000)
    random = np.random.default_rng(0)
    hashes = np.array([sum(1 << int(b) for b in random.choice(64, 2, replace=False)) for _ in range(1500)], np.uint64)
    pairs, bits, complete = near_pairs(hashes)
    assert len(pairs) == len(bits) == 1000
    assert not complete


def test_a_hundred_thousand_images_take_seconds():
    hashes = np.random.default_rng(0).integers(0, 2**64, 100_000, dtype=np.uint64)
    hashes[99_999] = hashes[5] ^ np.uint64(0b1011 << 30)
    begun = time.process_time()
    pairs, bits, _ = near_pairs(hashes)
    assert time.process_time() - begun < 20
    assert [5, 99_999] in pairs.tolist()
    assert bits[pairs.tolist().index([5, 99_999])] == 3


def test_equal_and_similar_images():
    contents = [b"a", b"b", b"a", None, b"c", b"d", b"a"]
    appearances = [3, 9 << 40, 3, 0, 1, 0, 3]
    found = find_duplicates(contents, appearances, [False] * 5 + [True, False])
    assert found.complete
    assert found.pairs == [Pair(0, 2, None), Pair(0, 6, None), Pair(0, 4, 1), Pair(1, 4, 3), Pair(0, 1, 4)]
    parts, labels = ["training"] * 5 + ["test"] * 2, list("xyxxxzz")
    assert kinds(found.pairs[:2], parts, labels) == Kinds({("training", "test"): 1}, 1, 1)
    assert at_each_distance(found.pairs) == {1: 1, 3: 1, 4: 1}
