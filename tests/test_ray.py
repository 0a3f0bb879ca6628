"""``engine=ray`` and ``vitfast.ray.Predictor`` on a local cluster of two nodes with one CPU each."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vitfast
from support.subprocesses import python_environment
from vitfast.embed import main
from vitfast.evaluation.search import read_embeddings
from vitfast.evaluation.shards import part_files

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'vitfast[ray]'")
cluster_utils = pytest.importorskip("ray.cluster_utils")
pytestmark = pytest.mark.slow
STORE = {"object_store_memory": 100 << 20}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The cluster."""
    # Ray runs workers at niceness 15: on a busy machine they would not get any time
    environment = {"PYTHONPATH": python_environment()["PYTHONPATH"], "RAY_worker_niceness": "0"}
    before = {name: os.environ.get(name) for name in environment}
    os.environ |= environment
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **STORE})
    cluster.add_node(num_cpus=1, **STORE)
    ray.init(address=cluster.address, log_to_driver=False)
    cluster.wait_for_nodes()
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """A small model, and 24 large images, of which one cannot be read."""
    folder = tmp_path_factory.mktemp("collection")
    torch.manual_seed(0)
    torch.save(vitfast.create_model("vit_mini_patch4_32", num_classes=7).state_dict(), folder / "weights.pth")
    (folder / "photos").mkdir()
    for number in range(23):
        gradient = Image.linear_gradient("L").rotate(10 * number).resize((2000, 1500))
        gradient.convert("RGB").save(folder / "photos" / f"{number:02}.jpg")
    (folder / "photos" / "05_bad.jpg").write_text("no image")
    model = [f"checkpoint={folder / 'weights.pth'}", "model=vit_mini_patch4_32", "threads=1"]
    return [*model, f"images={folder / 'photos'}", "shard_size=2", "shrink_jpeg=false"]


@pytest.fixture(scope="module")
def expected(options, tmp_path_factory):
    """The files of a run without Ray."""
    folder = tmp_path_factory.mktemp("local")
    threads = torch.get_num_threads()
    assert main([*options, f"output={folder}"]) == 0
    torch.set_num_threads(threads)
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def once_a_part_exists(folder: Path, action) -> threading.Thread:
    """Runs an action when the first file of results has appeared."""

    def wait() -> None:
        while not any(folder.glob("part-*")):
            time.sleep(0.05)
        action()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def actors() -> list[int]:
    """The processes that write shards: Ray names them ``ray::…(_ShardWriter)…``."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            title = entry.read_bytes()
        except OSError:  # it has ended
            continue
        if title.startswith(b"ray::") and b"_ShardWriter" in title:
            found.append(int(entry.parent.name))
    return found


def test_the_files_equal_those_of_one_process(cluster, options, expected, tmp_path, capsys):
    assert main([*options, "engine=ray", f"output={tmp_path}"]) == 0
    assert contents(tmp_path) == expected
    shown = capsys.readouterr().out
    assert shown.count("2 images, ") == 12
    assert "24 of them computed now, 1 unreadable" in shown
    part_files(tmp_path)[3].unlink()
    assert main([*options, "engine=ray", f"output={tmp_path}"]) == 0
    assert contents(tmp_path) == expected
    assert "2 of them computed now" in capsys.readouterr().out


def test_a_killed_worker_changes_nothing(cluster, options, expected, tmp_path):
    killed: list[int] = []

    def kill() -> None:
        killed.extend(actors()[:1])
        for process in killed:
            os.kill(process, signal.SIGKILL)

    thread = once_a_part_exists(tmp_path, kill)
    assert main([*options, "engine=ray", f"output={tmp_path}"]) == 0
    thread.join()
    assert killed
    assert contents(tmp_path) == expected


@pytest.mark.parametrize("column", ["bytes", "image", "path"])
def test_predictor_takes_encoded_images_pixels_and_paths(options, tmp_path, column):
    from vitfast.ray import Predictor

    random = np.random.default_rng(0)
    pixels = [random.integers(0, 255, (40, 40, 3), dtype=np.uint8) for _ in range(3)]
    paths = [str(tmp_path / f"{number}.png") for number in range(3)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    encoded = np.array([Path(path).read_bytes() for path in paths], dtype=object)
    batch = {"bytes": encoded, "image": np.stack(pixels), "path": np.array(paths)}
    table = Predictor(options[0].partition("=")[2], "vit_mini_patch4_32")(
        {name: batch[name] for name in (column, "path")}
    )
    assert table["path"].to_pylist() == paths
    assert table["error"].null_count == 3
    assert main([*options[:3], f"images={tmp_path}", f"output={tmp_path / 'local'}"]) == 0
    ((_, features),) = read_embeddings(tmp_path / "local")
    np.testing.assert_array_equal(np.stack(table["embedding"].to_pylist()), features.numpy())
