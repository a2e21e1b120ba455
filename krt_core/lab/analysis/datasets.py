"""Data sets of runs, opened once for all who look at them."""

from __future__ import annotations

from functools import lru_cache

from ...config import Data
from ...data import MultiLabelDataset, open_dataset
from ...data.dataset import Split
from ...errors import DataError
from ...runs.folder import Run


@lru_cache(maxsize=6)
def opened_once(data: Data, split: Split) -> MultiLabelDataset:
    """As `krt_core.data.open_dataset`. DataError where it is not there."""
    return open_dataset(data, split)


def opened_test_set(run: Run) -> tuple[MultiLabelDataset | None, str]:
    """The test set of a run; None, and why, where it is not there."""
    try:
        return opened_once(run.experiment.data, "test"), ""
    except DataError as error:
        return None, f"Without pictures: {error}"
