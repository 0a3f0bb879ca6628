"""``python -m vitfast.train``."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import vitfast
from support.tiny_run import TINY_RUN
from vitfast.runs.checkpoint import latest_checkpoint, load_weights_file
from vitfast.train import main

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(vitfast.__file__).parents[1])}


def start(*options: str, **arguments) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "vitfast.train", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        **arguments,
    )


def without_clocks(run_dir: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "images_per_s"} for line in lines]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["model.img_size=9"], "img_size=9 is not a multiple of patch_size=4"),
        (["optim.lrr=1"], "optim.lr"),
        (["data.augment.rand_ops=2"], "data.augment.rand_ops changes colours"),
        (["optim.nesterov=true", "optim.momentum=0"], "optim.nesterov=true needs optim.momentum above 0"),
        (["schedule.epochs=many"], "schedule.epochs=many"),
        (["recipe=nothing"], "nothing"),
        (["train.resume=nowhere"], "nowhere does not exist"),
        (["data.dataset=image_folder"], "data.root"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(capsys, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    assert main(options) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_run_directory_in_use_is_refused(capsys, tmp_path):
    (tmp_path / "notes.txt").touch()
    assert main([*TINY_RUN, f"run_dir={tmp_path}"]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_help_needs_nothing(capsys):
    with pytest.raises(SystemExit) as info:
        main(["--help"])
    assert info.value.code == 0
    assert "optim.lr" in capsys.readouterr().out


def stop_after_first_epoch(run_dir: Path, number: signal.Signals, *options: str) -> tuple[int, str]:
    """Signals a run's whole process group, as batch systems and Ctrl+C do; returns exit code and stderr."""
    process = start(*TINY_RUN, *options, f"run_dir={run_dir}", start_new_session=True)
    deadline = time.monotonic() + 240
    while not (run_dir / "metrics.jsonl").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=120)
    return process.returncode, err


def test_sigterm_saves_and_the_run_goes_on_exactly(tmp_path):
    options = ["schedule.epochs=6", "optim.ema_decay=0.9", "model.drop_rate=0.1", "train.keep_checkpoints=1"]
    run_dir = tmp_path / "run"
    code, err = stop_after_first_epoch(run_dir, signal.SIGTERM, *options, "data.workers=2")
    assert code == 143, err
    assert "stopped by SIGTERM" in err
    assert "Traceback" not in err
    assert 0 < int(latest_checkpoint(run_dir).name.partition("_")[2]) < 36
    command = next(line.strip() for line in err.splitlines() if "train.resume=" in line)
    assert shlex.split(command)[1:] == ["-m", "vitfast.train", f"train.resume={run_dir}"]
    assert main([f"train.resume={run_dir}", "data.workers=0"]) == 0
    assert main([*TINY_RUN, *options, f"run_dir={tmp_path / 'whole'}"]) == 0
    assert without_clocks(run_dir) == without_clocks(tmp_path / "whole")
    for kind in ("model", "ema"):
        resumed, whole = (load_weights_file(latest_checkpoint(tmp_path / name), kind) for name in ("run", "whole"))
        assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_ctrl_c_saves_too(tmp_path):
    code, err = stop_after_first_epoch(tmp_path / "run", signal.SIGINT, "schedule.epochs=40")
    assert code == 130, err
    assert "stopped by SIGINT" in err
    assert "Traceback" not in err
    assert latest_checkpoint(tmp_path / "run") is not None


def test_the_commands_at_the_end_run(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*TINY_RUN, "recipe=vit_digits"]) == 0
    out = capsys.readouterr().out
    commands = [shlex.split(line) for line in out.splitlines() if " -m vitfast." in line]
    assert [command[2] for command in commands] == [
        "vitfast.evaluate",
        "vitfast.predict",
        "vitfast.train",
        "vitfast.train",
        "vitfast.train",
        "vitfast.train",
    ]
    run_dir = Path(commands[0][3].partition("=")[2])
    assert run_dir.parent == Path("runs")
    assert run_dir.name.startswith("vit_digits-")
    from vitfast.evaluate import main as evaluate
    from vitfast.predict import main as predict

    assert evaluate(commands[0][3:]) == 0
    assert predict(commands[1][3:]) == 0
    assert main(commands[2][3:]) == 0
    assert main(commands[3][3:]) == 0
    assert run_dir.with_name(f"{run_dir.name}-seed1").is_dir()


@pytest.mark.slow
def test_the_main_job_learns_digits(tmp_path):
    assert main([f"run_dir={tmp_path / 'run'}"]) == 0
    assert without_clocks(tmp_path / "run")[-1]["top1"] > 0.95
