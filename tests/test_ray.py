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
from support import failing_actor
from support.subprocesses import python_environment
from vitfast.commands.command_options import EmbedOptions
from vitfast.config import load_options
from vitfast.data.collection import list_images
from vitfast.embed import main
from vitfast.evaluation.row_functions import Embedder
from vitfast.evaluation.search import read_embeddings
from vitfast.evaluation.shards import ShardFolder, part_files, split_shards

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'vitfast[ray]'")
cluster_utils = pytest.importorskip("ray.cluster_utils")
pytestmark = pytest.mark.slow
STORE = {"object_store_memory": 100 << 20}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The cluster; the second node, which a test may remove, is ``cluster.second``."""
    # Ray runs workers at niceness 15: on a busy machine they would not get any time
    environment = {"PYTHONPATH": python_environment()["PYTHONPATH"], "RAY_worker_niceness": "0"}
    before = {name: os.environ.get(name) for name in environment}
    os.environ |= environment
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **STORE})
    cluster.second = cluster.add_node(num_cpus=1, **STORE)
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


def test_an_actor_that_raises_once_is_called_again(cluster, options, expected, tmp_path):
    assert _write(failing_actor.raises_once, options, tmp_path / "out") == 12
    assert (tmp_path / "out.raised").exists()
    parts = {name: content for name, content in expected.items() if name.startswith("part-")}
    assert {name: content for name, content in contents(tmp_path / "out").items() if name in parts} == parts


def test_an_actor_that_always_raises_ends_the_run(cluster, options, tmp_path):
    with pytest.raises(vitfast.UserError, match=r"Ray could not compute a shard, after 3 retries: .*planted"):
        _write(failing_actor.raises_always, options, tmp_path / "out")


def _write(build, options: list[str], output: Path) -> int:
    """Calls ``write_shards`` with another way to build the model; returns the number of shards."""
    from vitfast.ray import write_shards

    chosen = load_options(EmbedOptions, [*options, f"output={output}"], "test")
    trained = chosen.load(headless=True)
    folder = ShardFolder(output, "parquet", Embedder(trained), {}, {})
    return sum(1 for _ in write_shards(split_shards(list_images(chosen.images), 2), chosen, build, folder))


@pytest.fixture(scope="module")
def pictures(options, tmp_path_factory):
    """Six images and their embeddings by one process."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    paths = [str(folder / f"{number}.png") for number in range(6)]
    for path in paths:
        Image.fromarray(random.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(path)
    assert main([*options[:3], f"images={folder}", f"output={folder / 'out'}"]) == 0
    ((_, features),) = read_embeddings(folder / "out")
    return paths, features.numpy()


@pytest.mark.parametrize("column", ["bytes", "image", "path"])
def test_predictor_takes_encoded_images_pixels_and_paths(options, pictures, column):
    from vitfast.ray import Predictor

    paths, features = pictures
    encoded = np.array([Path(path).read_bytes() for path in paths], dtype=object)
    pixels = np.stack([np.asarray(Image.open(path)) for path in paths])
    batch = {"bytes": encoded, "image": pixels, "path": np.array(paths)}
    table = Predictor(options[0].partition("=")[2], "vit_mini_patch4_32")(
        {name: batch[name] for name in (column, "path")}
    )
    assert table["path"].to_pylist() == paths
    assert table["error"].null_count == 6
    np.testing.assert_array_equal(np.stack(table["embedding"].to_pylist()), features)


def test_map_batches_continues_from_rays_checkpoint(cluster, options, pictures, tmp_path):
    """After a run over four of six images, a run over all computes the two others.

    Ray's filter of what is done takes one of the two CPUs; reading, computing and writing share the other.
    """
    import ray.data
    from ray.data.checkpoint import CheckpointConfig

    from vitfast.ray import Predictor

    paths, features = pictures
    context = ray.data.DataContext.get_current()
    context.checkpoint_config = CheckpointConfig(
        "path", str(tmp_path / "checkpoint"), delete_checkpoint_on_success=False
    )
    settings = {"checkpoint": options[0].partition("=")[2], "model": "vit_mini_patch4_32"}
    try:
        for some in (paths[:4], paths):
            images = ray.data.read_binary_files(some, include_paths=True, num_cpus=0.25)
            rows = images.map_batches(
                Predictor, fn_constructor_kwargs=settings, batch_size=4, num_cpus=0.25, concurrency=1
            )
            rows.write_parquet(str(tmp_path / "out"), ray_remote_args={"num_cpus": 0.25})
    finally:
        context.checkpoint_config = None
    table = ray.data.read_parquet(str(tmp_path / "out")).to_pandas().sort_values("path")
    assert list(table["path"]) == paths
    np.testing.assert_array_equal(np.stack(list(table["embedding"])), features)
    assert table["error"].isna().all()


def test_a_removed_node_changes_nothing(cluster, options, expected, tmp_path):
    """The last test: the cluster has one node afterwards."""
    removed = once_a_part_exists(tmp_path, lambda: cluster.remove_node(cluster.second, allow_graceful=False))
    assert main([*options, "engine=ray", f"output={tmp_path}"]) == 0
    removed.join()
    assert contents(tmp_path) == expected
