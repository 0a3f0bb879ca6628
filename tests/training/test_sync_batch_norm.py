"""BatchNorm over groups of processes equals torch's on the joined batch of each group, forward and backward."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from support.subprocesses import free_port, run_python
from vitfast.errors import UserError
from vitfast.training.distributed import Ranks
from vitfast.training.sync_batch_norm import synchronize_batch_norms

# every rank compares its part with what one process computes for the batches of its group
RANKS = """
import os, sys, traceback
import torch
from torch import nn
from vitfast.training.distributed import Ranks
from vitfast.training.sync_batch_norm import synchronize_batch_norms

def build():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5), nn.BatchNorm1d(5))
    return layers.double()

def run(model, images):
    images.requires_grad_()
    for _ in range(2):  # the running statistics change twice
        result = model(images)
    (result.sin() * torch.arange(5)).sum().backward()
    return result

def check(rank, world, group_size):
    with Ranks("cpu") as ranks:
        model, expected = build(), build()
        synchronize_batch_norms(model, group_size, ranks)
        assert list(model.state_dict()) == list(expected.state_dict())
        size = min(group_size or world, world)
        first = rank // size * size
        torch.manual_seed(1)
        parts = [torch.randn(3 + number, 3, 2, 2, dtype=torch.float64) for number in range(world)]  # of different sizes
        group = torch.cat(parts[first : first + size])
        begin = sum(map(len, parts[first:rank]))
        mine = group[begin : begin + len(parts[rank])].clone()
        close = lambda one, other: torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)
        close(run(model, mine), run(expected, group)[begin : begin + len(mine)])
        close(mine.grad, group.grad[begin : begin + len(mine)])
        for name, buffer in expected.named_buffers():
            close(model.get_buffer(name), buffer)
        for parameter, of_group in zip(model.parameters(), expected.parameters()):
            members = [[] for _ in range(world)]
            torch.distributed.all_gather_object(members, parameter.grad)
            close(sum(members[first : first + size]), of_group.grad)
        model.eval(), expected.eval()
        close(model(mine), expected(mine))

for argument in sys.argv[1:]:
    world, group_size, port = map(int, argument.split(","))
    children = []
    for rank in range(world):
        child = os.fork()
        if child:
            children.append(child)
            continue
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        try:
            check(rank, world, group_size)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)  # without taking apart torch, which takes longer than the check
    if any([os.waitpid(child, 0)[1] for child in children]):
        sys.exit(f"{world} ranks in groups of {group_size} failed")
os._exit(0)
"""


def test_groups_equal_one_process_with_the_joined_batch():
    pairs = [(2, 0), (3, 0), (4, 2), (4, 9)]  # number of ranks, size of a group
    arguments = [f"{world},{group_size},{free_port()}" for world, group_size in pairs]
    finished = run_python("-c", RANKS, *arguments, OMP_NUM_THREADS="1")
    assert finished.returncode == 0, finished.stderr


def test_ranks_that_cannot_be_divided():
    ranks = Ranks("cpu")
    ranks.world = 4
    with pytest.raises(UserError, match=re.escape("train.sync_bn=3: 4 processes cannot be divided into groups of 3")):
        synchronize_batch_norms(nn.BatchNorm1d(2), 3, ranks)


def test_one_process_keeps_its_modules():
    module = nn.Sequential(nn.BatchNorm1d(2))
    synchronize_batch_norms(module, 0, Ranks("cpu"))
    assert type(module[0]) is nn.BatchNorm1d
    assert torch.equal(module[0].running_var, torch.ones(2))
