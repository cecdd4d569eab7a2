"""Writes scikit-learn's handwritten digits as image files with a long tail: python digits_folder.py FOLDER

FOLDER/train has 150 images of "0" to 5 of "9", FOLDER/test 20 images of each digit, with a folder for each class.
"""

import sys
from collections import Counter
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits


def write_digits(folder: Path, largest: int = 150, smallest: int = 5, test: int = 20) -> None:
    digits, seen = load_digits(), Counter()
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        seen[label] += 1
        part = "test" if seen[label] <= test else "train"
        if seen[label] <= test + round(largest * (smallest / largest) ** (label / 9)):
            path = Path(folder, part, str(label), f"{number}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((pixels * 15).astype("uint8")).save(path)


if __name__ == "__main__":
    write_digits(Path(sys.argv[1]))
