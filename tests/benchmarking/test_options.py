from __future__ import annotations

import pytest

from vitfast.benchmarking.options import BenchmarkOptions
from vitfast.config import load_options
from vitfast.errors import UserError


def load(*arguments):
    return load_options(BenchmarkOptions, list(arguments), "python -m vitfast.benchmark")


def test_lists_are_split_and_each_value_is_kept_once():
    options = load("model=ViT-B_16,vit_base_patch16_224,vit_nano_patch2_8", "batch=8, 1,8", "precision=[bf16,fp32]")
    assert options.models() == ["vit_base_patch16_224", "vit_nano_patch2_8"]
    assert options.batches() == [8, 1]
    assert options.precisions() == ["bf16", "fp32"]


def test_libraries_are_all_or_some():
    assert load().library_names() == ["torchvision", "timm"]
    assert load("libraries=timm").library_names() == ["timm"]


def test_defaults_are_allowed():
    options = load()
    assert options.models() == ["vit_tiny_patch16_224"]
    assert (options.batches(), options.precisions(), options.mode) == ([8], ["fp32"], "all")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=vit_tny_patch16_224"], "vit_tiny_patch16_224"),
        (["model="], "model= has no value"),
        (["batch=0"], "batch=0: '0' is no whole number >= 1"),
        (["batch=-1"], "'-1' is no whole number"),
        (["batch=1.5"], "'1.5' is no whole number"),
        (["batch=²"], "'²' is no whole number"),
        (["batch=1,,8"], "batch=1,,8 has an empty element"),
        (["precision=int8"], "'int8' is unknown; allowed: fp32, bf16, fp16"),
        (["precision=fp16", "mode=training"], "use bf16"),
        (["mode=speed"], "allowed: one of: inference, training, operators, all"),
        (["mode=inference", "backward=true"], "use mode=operators"),
        (["libraries=keras"], "libraries=keras: 'keras' is unknown; allowed: all, torchvision, timm"),
        (["mode=operators", "compile=true"], "use mode=inference or training"),
        (["seconds=0"], "seconds=0"),
        (["threads=0"], "threads=0"),
        (["btach=8"], "did you mean batch"),
        (["json=results.txt"], r"must end in \.json"),
        (["json=/no/such/folder/a.json"], "there is no folder /no/such/folder"),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(arguments, message):
    with pytest.raises(UserError, match=message):
        load(*arguments)


def test_a_folder_is_no_file_for_results(tmp_path):
    folder = tmp_path / "a.json"
    folder.mkdir()
    with pytest.raises(UserError, match="is a folder"):
        load(f"json={folder}")
