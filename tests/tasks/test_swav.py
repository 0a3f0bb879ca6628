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
from vitfast.layers import SwavHead
from vitfast.models.multi_crop import Crops
from vitfast.tasks import SwavTask
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


class Flatten(torch.nn.Flatten):
    takes_any_size = True


@pytest.mark.parametrize("queue_length", [0, 8])
def test_ten_steps_of_the_task_equal_those_of_the_original_code(queue_length):
    """The features are the images: a head of one layer without bias is the original's projection."""
    head = SwavHead([6, 3], [5], use_bias=False).double()
    with torch.no_grad():
        head.projection_head[0].weight.copy_(numbers("projection", 3, 6))
        head.prototypes0.weight.copy_(numbers("prototypes", 5, 3))
    task = SwavTask(Flatten(), head, queue_length=queue_length, double_precision=True).train()
    optimizer = torch.optim.SGD(task.parameters(), lr=0.5)
    losses = []
    for step in range(10):
        optimizer.zero_grad()
        crops = Crops(numbers(f"step{step}", 4, 4, 6)[..., None, None].unbind())
        loss = task(crops, torch.zeros(4))["loss"]
        loss.backward()
        losses.append(loss.item())
        gradient = head.projection_head[0].weight.grad.flatten().tolist()
        optimizer.step()
    expected = GOLDEN["original_queue" if queue_length else "original"]
    assert_equal(losses, expected["losses"])
    assert_equal(gradient, expected["last_projection_grad"])


def test_the_losses_of_several_heads_are_averaged():
    torch.manual_seed(0)
    both = SwavTask(Flatten(), SwavHead([6, 3], [5, 7]))
    crops, losses = Crops(torch.randn(3, 4, 6, 1, 1).unbind()), []
    for layer in range(2):
        alone = SwavTask(Flatten(), SwavHead([6, 3], [(5, 7)[layer]]))
        state = both.head.state_dict()
        names = {"prototypes0.weight": f"prototypes{layer}.weight"}
        alone.head.load_state_dict({key: state[names.get(key, key)] for key in alone.head.state_dict()})
        losses.append(alone(crops, torch.zeros(4))["loss"].item())
    assert both(crops, torch.zeros(4))["loss"].item() == pytest.approx(sum(losses) / 2)


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
