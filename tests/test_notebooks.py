"""Every notebook runs from top to bottom at its smallest scale, and is committed as its .py says, executed.

After changing one:  jupytext --sync notebooks/NAME.py && jupyter execute --inplace notebooks/NAME.ipynb
"""

import jupytext
import nbclient
import nbformat
import pytest
from paths import ROOT

NAMES = sorted(path.stem for path in (ROOT / "notebooks").glob("*.py"))
LARGEST = 1_500_000  # bytes of a committed notebook


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def kinds(cell):
    """What a cell shows: pictures, and tables."""
    shown = {kind for output in cell.outputs for kind in output.get("data", ())}
    return shown & {"image/png", "text/markdown"}


def committed(name):
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def test_there_are_five():
    assert [name[:2] for name in NAMES] == ["01", "02", "03", "04", "05"]


@pytest.mark.parametrize("name", NAMES)
def test_committed_notebook(name):
    """The .ipynb has the cells of the .py, was executed at the scale of a laptop, and is small."""
    path = ROOT / "notebooks" / f"{name}.ipynb"
    notebook, source = committed(name), jupytext.read(path.with_suffix(".py"))
    assert [(cell.cell_type, cell.source) for cell in notebook.cells] == [
        (cell.cell_type, cell.source) for cell in source.cells
    ]
    assert path.stat().st_size < LARGEST
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", ()) for output in outputs) or name.startswith("05")
    printed = "".join(output.get("text", "") for output in outputs)
    assert "laptop" in printed
    assert "Traceback" not in printed
    assert "site-packages" not in printed  # a path of the machine that executed it


@pytest.mark.parametrize("name", NAMES)
def test_runs_at_smoke_scale(name, tmp_path, monkeypatch):
    """Runs in an empty folder, and shows a table or picture wherever the committed one does."""
    monkeypatch.setenv("QWENJAX_SCALE", "smoke")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("XLA_FLAGS")  # one device, as a user has
    notebook = jupytext.read(ROOT / "notebooks" / f"{name}.py")
    nbclient.NotebookClient(
        notebook, kernel_name="python3", timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    wanted = [kinds(cell) for cell in code_cells(committed(name))]
    assert [kinds(cell) for cell in code_cells(notebook)] == wanted
