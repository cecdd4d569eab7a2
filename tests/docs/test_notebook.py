"""The notebook of examples/ runs from start to end, without a network, and stores no outputs."""

import ast
import json
import shutil
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOK = EXAMPLES / "long_tail_in_ten_minutes.ipynb"


def test_the_stored_notebook_has_no_outputs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells if "outputs" in cell)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    for name, value in (("HF_HUB_OFFLINE", "1"), ("OMP_NUM_THREADS", "1"), ("JUPYTER_PLATFORM_DIRS", "1")):
        monkeypatch.setenv(name, value)
    shutil.copy(EXAMPLES / "digits_folder.py", tmp_path)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    checks = "import json\njson.dumps([of_groups(before), of_groups(after), list(groups), path])"
    notebook.cells.append(nbformat.v4.new_code_cell(checks))
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=place).execute()
    *cells, last = [cell for cell in notebook.cells if cell.cell_type == "code"]
    before, after, groups, path = json.loads(ast.literal_eval(last.outputs[0]["data"]["text/plain"]))
    assert groups == ["many", "medium", "few"]
    assert after[2] > before[2] + 5  # the rare classes gain
    assert "image/png" in cells[-2].outputs[0]["data"]  # the bars
    predicted = ast.literal_eval(cells[-1].outputs[0]["data"]["text/plain"])
    assert len(predicted) == 3
    assert all(0 <= probability <= 1 for probability in predicted.values())
    assert (tmp_path / path).exists()
