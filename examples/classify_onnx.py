"""Classifies image files with a program of `ltfast export`: python classify_onnx.py model.onnx IMAGE...

Needs onnxruntime and Pillow, and neither ltfast nor torch.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

model, *paths = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
facts = json.loads(session.get_modelmeta().custom_metadata_map["ltfast.json"])
mode = "L" if facts["image_shape"][0] == 1 else "RGB"

for path in paths:
    image = ImageOps.exif_transpose(Image.open(path)).convert(mode)
    pixels = np.asarray(image).reshape(image.height, image.width, -1).transpose(2, 0, 1)
    (probabilities,) = session.run(None, {"images": pixels[None]})[0]  # uint8 (1, channels, H, W) -> (C,)
    best = int(probabilities.argmax())
    print(f"{path},{facts['class_names'][best]},{probabilities[best]:.5f}")
