"""The page "Your own images": its commands run as they are written, in order, and give what the page says."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent.parent / "docs/own_images.md"


@pytest.mark.slow
def test_the_page_from_start_to_end(tmp_path):
    bin_folder = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": os.pathsep.join([bin_folder, os.environ.get("PATH", "")]), "MPLBACKEND": "Agg"}
    blocks = re.findall(r"^```(sh|python)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert [language for language, _ in blocks] == ["python", "sh", "sh", "sh", "sh", "sh", "python", "sh"]
    said = []
    for language, code in blocks:
        command = ["bash", "-euc", code] if language == "sh" else [sys.executable, "-c", code]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
        assert result.returncode == 0, f"{code}\n{result.stdout}\n{result.stderr}"
        said.append(result.stdout)

    photos = [len(list(folder.iterdir())) for folder in sorted(tmp_path.glob("photos/*"))]
    assert (photos[0], photos[-1]) == (172, 20)
    assert len(list(tmp_path.glob("new/*.png"))) == 40
    assert (tmp_path / "look/counts.png").exists()
    report = json.loads((tmp_path / "runs/photos/metrics.json").read_text())
    assert report["balanced_accuracy"] > 60
    assert "<img" in (tmp_path / "runs/photos/report.html").read_text()
    calibration = json.loads((tmp_path / "runs/photos/calibration.json").read_text())
    assert calibration["abstain"]["accuracy"] == 0.95
    rows = list(csv.DictReader((tmp_path / "new.csv").open()))
    assert len(rows) == 40
    assert {row["class"] for row in rows if row["class"]} <= {f"digit {digit}" for digit in range(10)}
    assert said[-2].count("digit ") == 2
    assert (tmp_path / "photos.pt2").exists()
