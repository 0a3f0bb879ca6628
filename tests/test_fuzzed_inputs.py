"""Every kind of file that is read, changed at random: it is used or refused by name, in little time and memory.

Checkpoints are in ``training/test_mutated_checkpoint.py``, weights files of other systems in
``weights/test_fuzzed_files.py``. ``VITFAST_FUZZ_SEED=N`` begins with another seed.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import nn

import vitfast
from support.mutations import mutate_file
from vitfast.benchmarking.results import read_tables
from vitfast.config import DataConfig, load_config
from vitfast.config.recipes import find_recipe
from vitfast.data import build_dataset, load_image
from vitfast.errors import UserError
from vitfast.evaluation.checkpoint_data import _recorded_class_names
from vitfast.evaluation.feature_files import Features, _read, content_digest
from vitfast.models.saved_exits import SavedExits
from vitfast.runs.run_directory import RunDirectory
from vitfast.weights.recorded_preprocessing import recorded_preprocessing
from vitfast.weights.save_weights import write_safetensors

SEED = int(os.environ.get("VITFAST_FUZZ_SEED", "0"))
MEMORY_MIB, SECONDS = 300, 20
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"


class Overtime(BaseException):
    """No handler of exceptions catches this."""


def picture(size: int = 24) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))


def write_file_list(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / "images" / name).mkdir(parents=True)
        picture().save(folder / "images" / name / "1.png")
    (folder / "train_imagepaths.txt").write_text("images/a/1.png\nimages/b/1.png\n\nimages/a/1.png\n")
    (folder / "label_map.json").write_text(json.dumps({"b": 0, "a": 1}))


def use_file_list(folder: Path) -> None:
    dataset = build_dataset(DataConfig(dataset="file_list", root=str(folder), img_size=8), "train", seed=0)
    for index in range(len(dataset)):
        dataset.read(index, index)


def write_metrics(folder: Path) -> None:
    run = RunDirectory.create(folder / "run", "x")
    run.append_metrics({"split": "train", "epoch": 1, "step": 1, "loss": 1.5, "images_per_s": 10.0})
    run.write_environment({"python": "3"})
    run.close()


def use_metrics(folder: Path) -> None:
    run = RunDirectory.reopen(folder / "run")
    try:
        run.restore_metrics([])
        run.write_environment({"python": "3"})
    finally:
        run.close()


TIMM = {"architecture": "vit", "pretrained_cfg": {"input_size": [3, 8, 8], "mean": [0.5] * 3, "std": [0.5] * 3}}
PROCESSOR = {"do_resize": True, "size": {"height": 8, "width": 8}, "resample": 3, "do_normalize": True}
PROCESSOR |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_rescale": True, "rescale_factor": 1 / 255}


def use_preprocessing(folder: Path) -> None:
    model = nn.Module()
    model.pretrained_cfg = recorded_preprocessing(folder)
    if model.pretrained_cfg:
        with suppress(UserError):  # it names the steps that are not supported
            assert vitfast.preprocessing(model)(picture()).isfinite().all()


def write_huggingface(folder: Path) -> None:
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 48}
    config = transformers.ViTConfig(**sizes, image_size=8, patch_size=2, id2label={0: "cat", 1: "dog"})
    transformers.ViTForImageClassification(config).save_pretrained(folder)


def use_huggingface(folder: Path) -> None:
    model = vitfast.create_model("vit_nano_patch2_8", depth=1, embed_dim=12, num_heads=3, in_chans=3, checkpoint=folder)
    names = _recorded_class_names(folder, model.num_classes)
    assert names is None or len(names) == model.num_classes


def write_quantized(folder: Path) -> None:
    model = vitfast.create_model("vit_nano_patch2_8", depth=1, embed_dim=8, num_heads=2, num_classes=2)
    vitfast.quantize_(model, vitfast.Int8Config())
    vitfast.save_quantized(model, folder / "quantized.safetensors")


def write_exits(folder: Path) -> None:
    model = vitfast.create_model("dvt_nano_16", num_classes=3)
    model.saved_exits = SavedExits(((0.5,) * model.num_exits, (0.7,) * model.num_exits), (0.1, 0.2), (0.5, 0.6))
    vitfast.save_weights(model, folder / "exits.safetensors")


def use_exits(folder: Path) -> None:
    model = vitfast.create_model(checkpoint=folder / "exits.safetensors")
    if model.saved_exits is not None:
        vitfast.EarlyExit(model.eval(), list(model.saved_exits.thresholds[0]))


def write_vit(folder: Path) -> None:
    model = vitfast.create_model("vit_nano_patch2_8", depth=1, embed_dim=8, num_heads=2, num_classes=2).eval()
    vitfast.export(model, folder / "model.vit")


def use_vit_of_any_digest(folder: Path) -> None:
    """What is damaged is found by its SHA-256; an attacker writes the right one."""
    with pytest.MonkeyPatch.context() as patch:
        content = folder.joinpath("model.vit").read_bytes()
        found = re.search(rb"sha256[^0-9a-f]+([0-9a-f]{64})", content)
        patch.setattr("vitfast.inference.vit_file._digest", lambda *_: found and found.group(1).decode())
        vitfast.load(folder / "model.vit")


def write_features(folder: Path) -> None:
    features = Features(torch.randn(5, 3), torch.arange(5), torch.arange(5))
    metadata = {"key": "x", "sha256": content_digest(vars(features).items())}
    write_safetensors(vars(features), folder / "features.safetensors", metadata)


def use_features(folder: Path) -> None:
    features = _read(folder / "features.safetensors", "x")
    assert features is None or features.features.isfinite().all()


def image_kind(suffix: str) -> tuple[Callable[[Path], None], Callable[[Path], None]]:
    def write(folder: Path) -> None:
        picture().save(folder / f"image{suffix}")

    def use(folder: Path) -> None:
        for channels in (1, 3):
            assert load_image(folder / f"image{suffix}", channels).mode in ("L", "RGB")

    return write, use


def json_kind(name: str, content: object) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(json.dumps(content))


# how a valid file is made, and how it is read
KINDS: dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]] = {
    "file list": (write_file_list, use_file_list),
    "metrics": (write_metrics, use_metrics),
    "timm folder": (json_kind("config.json", TIMM), use_preprocessing),
    "preprocessor": (json_kind("preprocessor_config.json", PROCESSOR), use_preprocessing),
    "processor": (json_kind("processor_config.json", {"image_processor": PROCESSOR}), use_preprocessing),
    "hugging face": (write_huggingface, use_huggingface),
    "quantized": (write_quantized, lambda folder: vitfast.load_quantized(folder / "quantized.safetensors")),
    "exits": (write_exits, use_exits),
    "vit": (write_vit, lambda folder: vitfast.load(folder / "model.vit")),
    "vit, any digest": (write_vit, use_vit_of_any_digest),
    "features": (write_features, use_features),
    "recipe": (
        lambda folder: shutil.copy(find_recipe("vit_digits"), folder / "recipe.yaml"),
        lambda folder: load_config([f"recipe={folder / 'recipe.yaml'}"]),
    ),
    "json recipe": (
        json_kind("recipe.yaml", {"base": "vit_digits", "optim": {"lr": 0.1}, "data": {"augment": {"flip": 0.5}}}),
        lambda folder: load_config([f"recipe={folder / 'recipe.yaml'}"]),
    ),
    "benchmark results": (
        lambda folder: shutil.copy(find_results(), folder / "results.json"),
        lambda folder: read_tables(folder / "results.json"),
    ),
    **{suffix[1:]: image_kind(suffix) for suffix in (".png", ".jpg", ".webp", ".gif", ".tif", ".bmp", ".ppm")},
}


def find_results() -> Path:
    def is_read(path: Path) -> bool:
        try:
            return bool(read_tables(path))
        except UserError:
            return False

    return min((path for path in RESULTS.rglob("*.json") if is_read(path)), key=lambda path: path.stat().st_size)


@contextmanager
def limits(case: str) -> Iterator[None]:
    """Raises if the block takes too long or allocates too much."""

    def expire(*_: object) -> None:
        raise Overtime(f"{case} takes more than {SECONDS} s")

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < MEMORY_MIB, f"{case}: {grown:.0f} MiB"


@pytest.mark.parametrize("examples", [15, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.filterwarnings("ignore")
def test_changed_files(tmp_path: Path, kind: str, examples: int) -> None:
    write, use = KINDS[kind]
    whole, folder = tmp_path / "whole", tmp_path / "changed"
    whole.mkdir()
    write(whole)
    shutil.copytree(whole, folder)
    use(folder)  # what is changed below can be read where it is whole
    refused = 0
    for seed in range(SEED, SEED + examples):
        chance = random.Random(seed)
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "log.txt")
        mutate_file(chance.choice(files), chance)
        message = None
        try:
            with limits(f"seed {seed}"):
                use(folder)
        except UserError as error:
            message = str(error)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error!r}") from error
        # a recipe's error may name the option instead
        assert message is None or str(folder) in message or "recipe" in kind, f"seed {seed}: {message}"
        refused += message is not None
    if kind not in ("metrics", "features"):  # of these, what is damaged is left out
        assert refused > examples / 10
