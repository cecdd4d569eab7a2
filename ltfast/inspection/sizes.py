"""Sizes and modes of images."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ltfast.inspection.images import Seen

QUANTILES = {"smallest": 0.0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "largest": 1.0}


def describe_sizes(seen: Sequence[Seen]) -> dict[str, Any]:
    """The quantiles of the widths, heights and short sides in pixels, and the number of images of each mode.

    Args:
        seen: at least one image.
    """
    sides = {
        "width": [image.width for image in seen],
        "height": [image.height for image in seen],
        "short side": short_sides(seen),
    }
    quantiles = {
        name: {
            word: int(value)
            for word, value in zip(
                QUANTILES, np.quantile(values, list(QUANTILES.values()), method="nearest"), strict=True
            )
        }
        for name, values in sides.items()
    }
    return {**quantiles, "modes": dict(Counter(image.mode for image in seen).most_common())}


def short_sides(seen: Sequence[Seen]) -> list[int]:
    return [min(image.width, image.height) for image in seen]
