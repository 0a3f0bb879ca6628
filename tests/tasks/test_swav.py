"""SwAV's loss, assignments and queue: those of the original code and VISSL's, in one process and two."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch

from support.subprocesses import run_python
from support.swav_steps import numbers, run_steps
from vitfast.tasks.swav import sinkhorn, swav_loss

GOLDEN = json.loads((Path(__file__).parent / "swav_steps.json").read_text())

TWO_RANKS = """
import json, os, sys
import torch.distributed as dist
from support.swav_steps import run_steps

if __name__ == "__main__":
    first = os.fork()
    rank = 0 if first else 1
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/meeting", rank=rank, world_size=2)
    open(f"{sys.argv[1]}/{rank}.json", "w").write(json.dumps(run_steps(queue_length=8, rank=rank, world=2)))
    dist.destroy_process_group()
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) if first else 0)
"""


def assert_equal(found: object, expected: object) -> None:
    torch.testing.assert_close(
        torch.tensor(found, dtype=torch.float64), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize(
    ("code", "options"),
    [
        ("original", {}),
        ("original_queue", {"queue_length": 8}),
        ("vissl", {}),
        ("vissl_hard_first_3", {"hard_steps": 3}),
    ],
)
def test_ten_steps_equal_those_of_the_original_codes(code, options):
    found, expected = run_steps(**options), dict(GOLDEN[code])
    if "last_assignments" in expected:
        expected["last_assignments"] = expected["last_assignments"][1]
    for name, values in expected.items():
        if values is not None:
            assert_equal(found[name], values)


def test_two_ranks_equal_one_process(tmp_path):
    finished = run_python("-c", TWO_RANKS, str(tmp_path), OMP_NUM_THREADS="1")
    assert finished.returncode == 0, finished.stderr
    alone = run_steps(queue_length=8)
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        for name in ("losses", "last_projection_grad", "last_prototypes_grad"):
            assert_equal(found[name], alone[name])
        assert_equal(found["last_assignments"], alone["last_assignments"][rank::2])


@pytest.mark.parametrize("scale", [1.0, 1e4, 1e30])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_rows_sum_to_one_and_columns_are_balanced(scale, dtype):
    scores = (numbers("scores", 12, 3) * scale).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        q = sinkhorn(scores, iterations=3)
    assert q.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(q.sum(dim=1), torch.ones(12, dtype=q.dtype))
    if scale == 1.0:
        many = sinkhorn(scores.double(), epsilon=0.5, iterations=50)
        torch.testing.assert_close(many.sum(dim=0), torch.full((3,), 4.0, dtype=torch.float64), rtol=1e-6, atol=0)


def test_an_empty_batch_has_no_assignments():
    assert sinkhorn(torch.empty(0, 4)).shape == (0, 4)


def test_equal_scores_cost_ln_k():
    loss = swav_loss([torch.zeros(4, 7)] * 3)
    assert float(loss) == pytest.approx(math.log(7))


def test_a_nan_reaches_the_loss():
    scores = [torch.full((2, 3), math.nan), torch.zeros(2, 3)]
    assert math.isnan(swav_loss(scores))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sinkhorn(torch.zeros(3)), "scores must be [B, K], got [3]"),
        (lambda: sinkhorn(torch.zeros(2, 3), epsilon=0), "epsilon must be above 0"),
        (lambda: swav_loss([torch.zeros(2, 3)]), "scores must list [B, K] for two or more crops"),
        (lambda: swav_loss([torch.zeros(2, 3)] * 2, assign_crops=(2,)), "assign_crops must list crops in 0..1"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
