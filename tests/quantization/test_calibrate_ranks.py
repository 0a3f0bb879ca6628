"""Distributed calibration gives the same ranges as one process."""

from __future__ import annotations

import json
from pathlib import Path

from support.subprocesses import run_python

# a rank of two calibrates on its own images: the first on two batches, the other on one, or on none
PROGRAM = """
import json, os, sys
import torch, torch.distributed as dist
import vitfast

def model():
    torch.manual_seed(0)
    model = vitfast.create_model("vit_nano_patch2_8", depth=1, num_classes=5)
    vitfast.quantize_(model, vitfast.QATConfig(vitfast.Int8Config("calibrated")))
    return model

def work(rank, folder, splits):
    answers = []
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    for first in splits:
        together = model()
        layers = vitfast.calibrate(together, list(images[:first] if rank == 0 else images[first:]))
        answers.append((layers, vitfast.quantization_record(together)))
    dist.destroy_process_group()
    torch.manual_seed(1)
    alone = model()
    vitfast.calibrate(alone, list(images))
    expected = vitfast.quantization_record(alone)
    found = [{"layers": layers, "same": record == expected} for layers, record in answers]
    open(f"{folder}/{rank}.json", "w").write(json.dumps(found))

folder, splits = sys.argv[1], json.loads(sys.argv[2])
images = torch.randn(3, 4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
images *= torch.arange(1.0, 4.0).view(3, 1, 1, 1, 1)
if __name__ == "__main__":
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            try:
                work(rank, folder, splits)
            except BaseException as error:
                print(repr(error), file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        children.append(child)
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""


def test_ranges_of_all(tmp_path: Path) -> None:
    splits = [2, 3]  # of three batches the first rank has two and the other one; or the other has none
    finished = run_python("-c", PROGRAM, str(tmp_path), json.dumps(splits))
    assert finished.returncode == 0, finished.stderr
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == [{"layers": 6, "same": True}] * len(splits)
