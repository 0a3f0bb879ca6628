"""``python -m vitfast.train``."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from support.run_content import content, differences
from support.tiny_run import TINY_RUN
from vitfast.train import main


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
def test_a_model_of_timm_in_every_command(tmp_path, capsys):
    """Train, resume, fine-tune at another size, evaluate, predict, quantize."""
    from vitfast.evaluate import main as evaluate
    from vitfast.predict import main as predict
    from vitfast.quantize import main as quantize

    small = ["model.name=timm/test_vit", "data.img_size=32", "data.batch_size=256", "schedule.warmup_epochs=0"]
    small += [f"data.augment.affine_{name}=0" for name in ("degrees", "translate", "scale")]
    run_dir = tmp_path / "run"
    assert main([*small, "model.drop_path=0.1", "schedule.epochs=2", "schedule.min_lr=0", f"run_dir={run_dir}"]) == 0
    whole = content(run_dir)
    assert main([f"train.resume={run_dir / 'checkpoint_000006'}"]) == 0
    assert differences(whole, content(run_dir)) == []

    capsys.readouterr()
    assert evaluate([f"checkpoint={run_dir}", "output=json"]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] == whole["metrics"][-1]["top1"]
    assert predict([f"checkpoint={run_dir}", f"images={run_dir / 'samples'}"]) == 0
    assert quantize([f"checkpoint={run_dir}", "format=FP16_32", f"output={tmp_path / 'fp16'}"]) == 0
    assert evaluate([f"checkpoint={tmp_path / 'fp16'}"]) == 0
    tuned = [*small, f"model.checkpoint={run_dir}", "schedule.steps=1", "data.img_size=48", "quantize.format=INT8"]
    assert main([*tuned, f"run_dir={tmp_path / 'tuned'}"]) == 0


@pytest.mark.slow
def test_the_main_job_learns_digits(tmp_path):
    assert main([f"run_dir={tmp_path / 'run'}"]) == 0
    assert without_clocks(tmp_path / "run")[-1]["top1"] > 0.95
