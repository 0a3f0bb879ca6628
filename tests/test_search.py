"""``python -m vitfast.search`` and ``vitfast.knn``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vitfast
from vitfast.embed import main as embed
from vitfast.evaluation.knn import nearest_neighbours
from vitfast.evaluation.search import near_duplicates, read_embeddings
from vitfast.search import main

pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twelve images of which 2 and 7 are almost 0, 9 is almost 4, and one that cannot be read."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    pixels = [random.integers(0, 255, (40, 40, 3), dtype=np.uint8) for _ in range(12)]
    for copy, original in ((2, 0), (7, 0), (9, 4)):
        pixels[copy] = pixels[original].copy()
        pixels[copy][20, 20 + copy] ^= 255
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{number:02}.png")
    (folder / "05_bad.jpg").write_text("no image")
    return folder


@pytest.fixture(scope="module", params=["parquet", "npy", "jsonl"])
def index(tmp_path_factory, photos, request):
    torch.manual_seed(0)
    model = vitfast.create_model("vit_mini_patch4_32", num_classes=7)
    folder = tmp_path_factory.mktemp("index")
    torch.save(model.state_dict(), folder / "weights.pth")
    options = [f"checkpoint={folder / 'weights.pth'}", "model=vit_mini_patch4_32", f"images={photos}"]
    assert embed([*options, f"output={folder / 'out'}", "shard_size=5", f"format={request.param}"]) == 0
    return folder / "out"


def test_knn_in_a_folder_equals_all_pairs(index):
    names, parts = zip(*read_embeddings(index), strict=True)
    paths, features = [path for part in names for path in part], torch.cat(parts)
    assert features.shape == (12, 192)
    found = vitfast.knn(index, features[3:8], k=4)
    unit = features.double() / features.double().norm(dim=1, keepdim=True)
    expected = (unit[3:8] @ unit.T).sort(dim=1, descending=True)
    torch.testing.assert_close(found.similarity.double(), expected.values[:, :4], atol=1e-5, rtol=0)
    assert found.paths == [[paths[row] for row in rows] for rows in found.row.tolist()]
    assert [row[0] for row in found.paths] == paths[3:8]
    in_memory = vitfast.knn(features, features[3:8], k=4)
    assert torch.equal(in_memory.row, found.row)
    assert in_memory.paths is None


def test_faiss_finds_the_same(monkeypatch):
    """Also among equally similar images, of which the first ones are taken, and beyond the number of images."""
    faiss = pytest.importorskip("faiss", reason="faiss is not installed: pip install 'vitfast[faiss]'")
    calls = []
    knn = faiss.knn
    monkeypatch.setattr(faiss, "knn", lambda *arguments, **options: calls.append(1) or knn(*arguments, **options))
    generator = torch.Generator().manual_seed(0)
    for index in (torch.randn(17000, 8, generator=generator), torch.eye(4)[torch.arange(60) % 4]):
        queries = torch.randn(5, index.shape[1], generator=generator)
        for k in (1, 7, 150):
            found = vitfast.knn(index, queries, k=k)
            similarity, row = nearest_neighbours(index, queries, k=k)
            assert torch.equal(found.row, row)
            torch.testing.assert_close(found.similarity, similarity)
    assert len(calls) == 3 * 2 + 3  # blocks of images


def test_the_nearest_images_of_an_image(index, photos, tmp_path, capsys):
    picture = tmp_path / "sheet.png"
    options = [f"index={index}", "k=3", f"image={photos / '07.png'},{photos / '05_bad.jpg'}"]
    capsys.readouterr()
    assert main([*options, f"picture={picture}", "output=jsonl"]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith(f"skipped: {photos / '05_bad.jpg'} cannot be decoded")
    (line,) = map(json.loads, shown.out.splitlines())
    assert [Path(path).name for path, _ in line[:2]] == ["07.png", "07.png"]
    assert {Path(path).name for path, _ in line[2:]} == {"00.png", "02.png"}
    sheet = np.asarray(Image.open(picture).convert("RGB"))
    assert sheet.shape == (192, 480, 3)
    assert (np.asarray(sheet[60:140]).reshape(80, 4, 120, 3).std(axis=(0, 2, 3)) > 20).all()  # four pictures


def test_near_duplicates_are_grouped(index, photos, capsys):
    groups = near_duplicates(index, 0.999)
    assert [[Path(path).name for path, _ in group] for group in groups] == [
        ["00.png", "02.png", "07.png"],
        ["04.png", "09.png"],
    ]
    assert all(group[0][1] == pytest.approx(1, abs=1e-5) for group in groups)
    capsys.readouterr()
    assert main([f"index={index}", "threshold=0.999"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(photos / "00.png")
    assert lines[1].startswith("   1.000  ")
    assert lines[-1].endswith("2 groups of similarity 0.999 or more")


def test_a_mistake_is_one_line_and_code_2(index, photos, tmp_path, capsys):
    image = f"image={photos / '00.png'}"
    for options, message in (
        ([f"index={tmp_path}", image], "holds no results of python -m vitfast.embed"),
        ([f"index={index}", "image=nowhere.png"], "image=nowhere.png does not exist"),
        ([f"index={index}", "threshold=2"], "threshold=2 is not allowed"),
        ([f"index={index}", image, f"picture={tmp_path / 'no' / 'sheet.png'}"], "cannot be written"),
    ):
        assert main(options) == 2
        shown = capsys.readouterr().err
        assert shown.startswith("error: ")
        assert message in shown
    with pytest.raises(vitfast.UserError, match="has embeddings of 192 numbers, the queries 5"):
        vitfast.knn(index, torch.zeros(1, 5))


def test_an_index_of_other_weights_is_refused(index, photos, tmp_path, capsys):
    record = json.loads((index / "shards.json").read_text())
    record["weights_sha256"] = "0" * 64
    (tmp_path / "shards.json").write_text(json.dumps(record))
    assert main([f"index={tmp_path}", f"image={photos}"]) == 2
    assert "was written with other weights" in capsys.readouterr().err
