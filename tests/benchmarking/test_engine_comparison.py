from __future__ import annotations

import importlib.util
import json

import pytest
import torch

from vitfast import benchmark
from vitfast.benchmarking import peers
from vitfast.benchmarking.agreement import agrees, relative_l2
from vitfast.benchmarking.engine_comparison import engine_comparison
from vitfast.benchmarking.foreign_model import Unavailable
from vitfast.benchmarking.options import PEER_NAMES, BenchmarkOptions
from vitfast.benchmarking.peers import PEERS, prepare_peer
from vitfast.config import load_options
from vitfast.errors import UserError
from vitfast.models import build_model
from vitfast.ops.packed import has_packed

MODEL = "vit_nano_patch2_8"


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "fp16_32"])
def test_engines_agree_with_the_source_and_run_in_their_precision(precision):
    contest = engine_comparison(MODEL, 3, precision, ["eager", "openvino", "torchao"]).build()
    names = [subject.name for subject in contest.subjects if not subject.is_limit]
    assert names[0] == "vitfast"
    assert ("eager" in names) == (precision in ("fp32", "bf16"))
    assert set(names[1:]) | set(contest.left_out) == {"eager", "openvino", "torchao"}
    reference = contest.reference()
    for subject in contest.subjects:
        if subject.output is not None:
            error = relative_l2(subject.output().to(reference.dtype), reference)
            assert agrees(error, precision), subject.name
            assert (error > 1e-5) == (precision != "fp32"), f"{subject.name} did not run in {precision}: {error}"
    assert contest.images == 3
    assert contest.subjects[0].gflop < contest.gflop, "the last block computes less than the source's"
    assert any(subject.is_limit for subject in contest.subjects) == has_packed("fma_peak")


@pytest.mark.parametrize("peer", PEERS)
def test_what_is_not_installed_is_said(peer):
    module = {"eager": "torch", "compile": "torch"}.get(peer, peer)
    if importlib.util.find_spec(module) is not None:
        pytest.skip(f"{module} is installed")
    model = build_model(MODEL).eval()
    precision = "int8" if peer == "torchao" else "fp32"
    with pytest.raises(Unavailable, match=f"not installed: pip install {module}"):
        prepare_peer(peer, model, torch.randn(1, 1, 8, 8), precision)


def test_a_peer_that_fails_is_left_out_with_its_reason(monkeypatch):
    def broken(model, images, precision):
        raise RuntimeError("no such instruction\nand a long trace")

    monkeypatch.setitem(peers.PEERS, "openvino", broken)
    contest = engine_comparison(MODEL, 1, "fp32", ["openvino"]).build()
    assert contest.left_out == {"openvino": "failed: RuntimeError: no such instruction"}


def test_names_of_peers():
    assert list(PEERS) == list(PEER_NAMES)
    assert load_options(BenchmarkOptions, ["peers=all", "precision=int8"], "benchmark").engines() == list(PEER_NAMES)
    for arguments, message in (
        (["peers=tensorrt"], "'tensorrt' is unknown; allowed: all, eager"),
        (["peers=all", "mode=training"], "leave mode, compile, operator, backward out"),
        (["peers=all", "precision=fp16"], "'fp16' is unknown; allowed: fp32, bf16, int8, fp16_32"),
    ):
        with pytest.raises(UserError, match=message):
            load_options(BenchmarkOptions, arguments, "benchmark").check()


def test_the_verb_writes_table_results_and_chart(tmp_path, capsys):
    path = tmp_path / "engines.json"
    arguments = [f"model={MODEL}", "batch=1,2", "seconds=0.01", "device=cpu", "peers=eager,openvino"]
    assert benchmark.main([*arguments, f"json={path}"]) == 0
    outcomes = json.loads(path.read_text())["outcomes"]
    assert [outcome["mode"] for outcome in outcomes] == ["engines", "engines"]
    own = outcomes[0]["standings"][0]
    assert own["subject"] == "vitfast"
    rivals = {one["subject"]: one["time_ms"]["median"] for one in outcomes[0]["standings"][1:] if not one["is_limit"]}
    assert rivals.keys() | outcomes[0]["left_out"].keys() == {"eager", "openvino"}
    assert "eager" in rivals
    assert own["against"] == min(rivals, key=rivals.get)
    assert own["speedup"]["median"] > 0
    limits = [one for one in outcomes[0]["standings"] if one["is_limit"]]
    assert bool(limits) == has_packed("fma_peak")
    if limits:
        assert limits[0]["peak_share"] == pytest.approx(1.0)
        assert 0 < own["peak_share"] < 1
        assert limits[0]["images_per_s"] > own["images_per_s"]
    printed = capsys.readouterr()
    assert "vit_nano_patch2_8, batch 1, fp32, engines" in printed.out
    assert path.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert str(path.with_suffix(".png")) in printed.err
    missing = importlib.util.find_spec("openvino") is None
    assert ("without openvino: not installed: pip install openvino" in printed.out) == missing
