from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.compress.train.small import small_model, small_rows, train_small

ROOT = Path(__file__).parents[3]
TWO = """
import json, os, sys
from pathlib import Path
from compress.train.processes import leave_group, num_processes
from tests.compress.train.small import *
assert num_processes() == 2
model = small_model(dropout=0)
trained = train_small(model, Path(sys.argv[1]), rows=small_rows(9), batch_size=3, micro_batch_size=1, epochs=5)
sums = [float(tensor.double().sum()) for tensor in model.state_dict().values()]
Path(sys.argv[1], f"rank{os.environ['RANK']}.json").write_text(json.dumps({"facts": trained.facts(), "sums": sums}))
leave_group()
"""


def test_two_processes_do_as_one_does(tmp_path: Path) -> None:
    model = small_model(dropout=0)
    one = train_small(model, tmp_path / "one", rows=small_rows(9), batch_size=3, epochs=5)
    sums = [float(tensor.double().sum()) for tensor in model.state_dict().values()]
    (tmp_path / "two").mkdir()
    script = tmp_path / "two.py"
    script.write_text(TWO)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, str(tmp_path / "two")], cwd=ROOT, env=environment, check=True, timeout=300)
    first, second = (json.loads((tmp_path / "two" / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first["sums"] == pytest.approx(sums, abs=1e-3)
    assert first["facts"]["best_update"] == one.best_update
    for entry, expected in zip(first["facts"]["history"], one.history, strict=True):
        assert entry == pytest.approx(expected, abs=1e-5)
