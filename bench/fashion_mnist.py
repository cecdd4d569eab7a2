"""From a folder of images, and from a table with groups, to predictions: every command, on Fashion-MNIST.

The images become files, 400 to 8 training images and 200 test images a class. Each command runs as a user would run it,
and then the checks: `predict` agrees with `eval` on every test image while the images are in another place, and the
exported programs, given the pixels of the files, agree with `predict`.

python bench/fashion_mnist.py OUT [--source /usr/share/datasets/fashion-mnist]     (Debian: dataset-fashion-mnist)
"""

import argparse
import csv
import gzip
import json
import shlex
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.datasets import FashionMNIST

LARGEST, SMALLEST, TEST = 400, 8, 200  # images of a class
GROUP = 4  # images of a group
BATCH = 200
TOLERANCE = 1e-4  # of a probability
TRAIN = ["--validation", "0.2", "--keep", "best", "--epochs", "12", "--batch-size", "64", "--lr", "0.05"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--source", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    args = parser.parse_args()
    write_images(args.source, args.out)
    images = args.out / "images"
    walk(f"folder:{images}", "cross_entropy", images, args.out / "folder")
    walk(f"csv:{images / 'table.csv'}", "balanced_bce", images, args.out / "table")


def write_images(source: Path, out: Path) -> None:
    """Write images/train/CLASS/*.png, images/test/CLASS/*.png, and images/table.csv with groups."""
    raw = out / "FashionMNIST/raw"
    raw.mkdir(parents=True, exist_ok=True)
    for packed in source.glob("*.gz"):
        with gzip.open(packed) as file:
            (raw / packed.stem).write_bytes(file.read())
    rows = []
    for part in ("train", "test"):
        data = FashionMNIST(out, train=part == "train")
        for label, name in enumerate(data.classes):
            share = label / (len(data.classes) - 1)
            count = round(LARGEST * (SMALLEST / LARGEST) ** share) if part == "train" else TEST
            members = np.flatnonzero(data.targets.numpy() == label)[:count]
            folder = out / "images" / part / name.replace("/", " or ")
            folder.mkdir(parents=True, exist_ok=True)
            for position, member in enumerate(members):
                path = folder / f"{member}.png"
                Image.fromarray(data.data[member].numpy()).save(path)
                group = f"{part} {label} {position // GROUP}"
                rows.append([path.relative_to(out / "images"), folder.name, part, group])
    with open(out / "images/table.csv", "w", newline="") as file:
        csv.writer(file).writerows([["path", "label", "split", "group"], *rows])


def walk(source: str, loss: str, images: Path, run: Path) -> None:
    """Run all commands, and check the results."""
    ltfast("data", source, "--out", run.with_name(f"{run.name}-data"))
    ltfast("train", "--data", source, "--loss", loss, *TRAIN, "--out", run)
    ltfast("calibrate", "--checkpoint", run)
    ltfast("eval", "--checkpoint", run)
    ltfast("report", run)
    moved = images.with_name("moved")
    predictions, programs = run / "predict.csv", [run / "model.pt2", run / "model.onnx"]
    images.rename(moved)  # from here on, the run's folder is all there is
    try:
        ltfast("predict", "--checkpoint", run, moved / "test", "--top", "10", "--out", predictions)
        for program in programs:
            ltfast("export", "--checkpoint", run, "--out", program)
        found = {row["path"]: row for row in csv.DictReader(predictions.open())}
        check_eval(run, found, moved, images)
        for program in programs:
            check_program(program, found)
    finally:
        moved.rename(images)


def ltfast(*words: str | Path) -> None:
    """Run a command, and print it with its time."""
    command = ["ltfast", *map(str, words)]
    print(f"$ {shlex.join(command)}", flush=True)
    begun = time.monotonic()
    subprocess.run(command, check=True)
    print(f"({time.monotonic() - begun:.0f} s)\n", flush=True)


def check_eval(run: Path, found: dict[str, dict[str, str]], moved: Path, images: Path) -> None:
    """`predict` and `eval` agree on every test image."""
    rows = list(csv.DictReader((run / "eval_predictions.csv").open()))
    assert len(rows) == len(found)
    for row in rows:
        path = moved / Path(row["path"]).relative_to(images.resolve() if Path(row["path"]).is_absolute() else images)
        assert found[str(path)]["class"] == row["class"], path
        assert abs(float(found[str(path)]["probability"]) - float(row["probability"])) < TOLERANCE, path
    print(f"predict agrees with eval on all {len(rows)} images\n")


def check_program(program: Path, found: dict[str, dict[str, str]]) -> None:
    """An exported program, given the pixels of the files, agrees with `predict` on every image."""
    classify, names = loaded(program)
    largest, paths = 0.0, list(found)
    for start in range(0, len(paths), BATCH):
        some = paths[start : start + BATCH]
        pixels = np.stack([np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1) for path in some])
        for path, probabilities in zip(some, classify(pixels), strict=True):
            row = found[path]
            assert names[int(probabilities.argmax())] == row["class"], path
            for rank in range(1, len(names) + 1):
                end = "" if rank == 1 else f"_{rank}"
                own = probabilities[names.index(row[f"class{end}"])]
                largest = max(largest, abs(float(own) - float(row[f"probability{end}"])))
    assert largest < TOLERANCE, largest
    print(f"{program.name} agrees with predict on all {len(paths)} images; largest difference {largest:.1e}\n")


def loaded(program: Path) -> tuple[Callable[[NDArray[np.uint8]], NDArray[np.float32]], list[str]]:
    """A program from pixels (B, 3, H, W) to probabilities (B, C), and its classes."""
    if program.suffix == ".pt2":
        extra = {"ltfast.json": ""}
        module = torch.export.load(program, extra_files=extra).module()
        return lambda pixels: module(torch.from_numpy(pixels)).detach().numpy(), names_in(extra["ltfast.json"])
    session = onnxruntime.InferenceSession(program, providers=["CPUExecutionProvider"])
    facts = session.get_modelmeta().custom_metadata_map["ltfast.json"]
    return lambda pixels: session.run(None, {"images": pixels})[0], names_in(facts)


def names_in(facts: str) -> list[str]:
    names: list[str] = json.loads(facts)["class_names"]
    return names


if __name__ == "__main__":
    main()
