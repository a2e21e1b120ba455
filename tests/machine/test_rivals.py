"""Methods that keep something of the sessions before, or begin anew: two processes as one, while a backbone learns."""

import pytest
import torch
from conftest import TINY, write_coco
from test_distributed import COMMON, in_two_processes, same

from krt_core.config import load_experiment
from krt_core.runs.folder import Run
from krt_core.session import train

pytestmark = pytest.mark.ddp
VARIANTS = {"cumulative": {}, "ewc": {"ewc.images": 19}, "derpp": {}}


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    for name, changes in VARIANTS.items():
        data = write_coco(tmp_path / "data" / name, train=45, test=25)
        own = {**COMMON, "train.epochs": 2, "train.batch_norm": "sync", "method": name, **changes}
        (tmp_path / f"{name}.yaml").write_text(
            load_experiment("digits_demo", {**TINY, **own, "data.root": str(data)}).to_yaml()
        )
    assert in_two_processes(tmp_path, [(name, f"{name}-two") for name in VARIANTS])
    for name in VARIANTS:
        two = Run(tmp_path / f"{name}-two")
        one = train(load_experiment(tmp_path / f"{name}.yaml"), tmp_path / f"{name}-one", show="none", device="cpu")
        same(one, two)
        kept = one.method_state(2), two.method_state(2)
        torch.testing.assert_close(*kept, rtol=1e-5, atol=1e-9, equal_nan=True)
