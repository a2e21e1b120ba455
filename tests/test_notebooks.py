"""The notebooks through papermill, as `make demo` runs them, on a few epochs."""

import os
from pathlib import Path

import nbformat
import pytest

pytestmark = [pytest.mark.notebook, pytest.mark.slow]
NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


@pytest.mark.timeout(1200)  # seven notebooks: a guard against hanging
def test_all_notebooks_run_headless(tmp_path, monkeypatch):
    import papermill

    monkeypatch.setenv("KRT_HOME", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # two threads beside other work wait for each other
    folder = tmp_path / "outputs" / "demo"
    folder.mkdir(parents=True)
    extra = {
        "02_train_sessions": {
            "overrides": {"train.epochs": 1},
            "methods": ["krt", "finetune", "joint"],
            "seeds": [0, 1],
        },
        "07_grow_tags": {"first": {"method": "census", "model.freeze": "first", "train.epochs": 1}},
    }
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        parameters = {"folder": "outputs/demo", **extra.get(path.stem, {})}
        papermill.execute_notebook(
            path, folder / path.name, parameters, kernel_name="python3", progress_bar=False, cwd=NOTEBOOKS
        )
        book = nbformat.read(folder / path.name, as_version=4)
        kinds = [set(o.get("data", {})) for c in book.cells if c.cell_type == "code" for o in c.outputs]
        assert any("image/png" in kind for kind in kinds), path.name
    assert len(list((folder / "runs").glob("*/DONE"))) == 6
    assert {p.stem for p in (folder / "figures").glob("*.png")} >= {
        "session_sizes", "sample_images", "co_occurrence", "training_loss", "mAP_seen", "mAP_base", "class_session",
        "forgetting_per_class", "thresholds", "token_mass", "gallery", "side_by_side", "kept_and_learned", "cost",
        "tag_changes", "tags_before_and_after",
    }  # fmt: skip
    assert "max_class_fixed" in (folder / "forgetting.csv").read_text()
    assert "from the bound" in (folder / "leaderboard.csv").read_text()
    assert "KRT_HOME" in os.environ
