"""Classifies image files with a program of `ltfast export`: python classify_pt2.py model.pt2 IMAGE...

Needs torch and Pillow, and not ltfast.
"""

import json
import sys

import numpy as np
import torch
from PIL import Image, ImageOps

model, *paths = sys.argv[1:]
extra = {"ltfast.json": ""}
program = torch.export.load(model, extra_files=extra).module()
facts = json.loads(extra["ltfast.json"])
mode = "L" if facts["image_shape"][0] == 1 else "RGB"

for path in paths:
    image = ImageOps.exif_transpose(Image.open(path)).convert(mode)
    pixels = torch.from_numpy(np.array(image)).reshape(image.height, image.width, -1)
    with torch.no_grad():
        probabilities = program(pixels.permute(2, 0, 1)[None])[0]  # uint8 (1, channels, H, W) -> (C,)
    best = int(probabilities.argmax())
    print(f"{path},{facts['class_names'][best]},{probabilities[best]:.5f}")
