"""Embeddings and predictions on Ray: ``pip install 'vitfast[ray]'``."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from vitfast.data.collection import StoredImage
from vitfast.device import select_device
from vitfast.errors import UserError, import_optional
from vitfast.evaluation.pretrained import load_any
from vitfast.evaluation.row_functions import Classifier, Columns, Embedder, RowFunction
from vitfast.evaluation.shards import Shard, ShardFolder, compute_rows, to_table

_OBJECT_STORE_BYTES = 200 << 20  # lists of paths, and nothing else, go through it
_RETRIES = 3  # of a shard whose actor raised or died


class Predictor:
    """Computes embeddings or classes of batches; a class for ``ray.data.Dataset.map_batches``.

    ::

        images = ray.data.read_binary_files("photos", include_paths=True)
        rows = images.map_batches(
            vitfast.ray.Predictor,
            fn_constructor_kwargs={"model": "timm/vit_small_patch14_dinov2"},
            batch_size=64, num_cpus=1, concurrency=4,
        )
        rows.write_parquet("embeddings")

    A batch has a column ``bytes`` of encoded images (``read_binary_files``), ``image`` of pixels ``[H, W, 3]`` in uint8
    (``read_images``), or only ``path``, of files that every node can read. The result has the other columns of the
    batch, and ``embedding`` (or ``classes`` and ``probabilities``) and ``error``. The actor computes with as many
    threads as Ray has assigned CPUs to it, or on a GPU if it has one.

    Args:
        checkpoint: as of ``python -m vitfast.embed``.
        model: as of ``python -m vitfast.embed``.
        task: ``"embed"`` or ``"predict"``.
        weights: ``"ema"``, ``"model"`` or ``"auto"``.
        **options: of ``Embedder`` (``normalize``, ``precision``, ``shrink_jpeg``) or ``Classifier`` (``top``,
            ``early_exit``, ``precision``, ``shrink_jpeg``).

    Raises:
        UserError: there is no such model or task.
    """

    def __init__(
        self,
        checkpoint: str | None = None,
        model: str | None = None,
        *,
        task: str = "embed",
        weights: str = "auto",
        **options: Any,
    ) -> None:
        kinds: dict[str, type[RowFunction]] = {"embed": Embedder, "predict": Classifier}
        if task not in kinds:
            raise UserError(f"task={task!r} is not known; allowed: {', '.join(kinds)}")
        device = _use_assigned_resources()
        place: dict[str, Any] = {"device": device, "headless": task == "embed", "precision": options.get("precision")}
        trained = load_any(checkpoint, model, weights, **place)
        self._function = kinds[task](trained, **options)

    def __call__(self, batch: dict[str, np.ndarray]) -> Any:
        """Returns a ``pyarrow.Table`` for a batch of columns."""
        found = [name for name in ("bytes", "image", "path") if name in batch]
        if not found:
            raise UserError(f"the batch has the columns {', '.join(batch)}; it needs one of bytes, image, path")
        column = found[0]
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            read = list(pool.map(self._read, [column] * len(batch[column]), batch[column]))
        pixels = [image for image, _ in read if image is not None]
        computed = self._function(torch.stack(pixels)) if pixels else {name: [] for name in self._function.columns}
        rows: Columns = {"error": [error for _, error in read]}
        for name, values in computed.items():
            value = iter(values)
            rows[name] = [None if image is None else next(value) for image, _ in read]
        table = to_table(rows, self._function.columns, self._function.width)
        for name in batch:
            if name not in ("bytes", "image"):
                table = table.append_column(name, [batch[name].tolist()])
        return table

    def _read(self, column: str, value: Any) -> tuple[torch.Tensor | None, str | None]:
        try:
            if column == "image":
                return self._function.from_pixels(value), None
            if column == "path":
                return self._function.decode(StoredImage(value, value).read(), value), None
            return self._function.decode(value, "the image"), None
        except UserError as error:
            return None, str(error)


def write_shards(
    shards: Iterable[Shard],
    options: Any,
    build: Callable[[Any], tuple[Any, RowFunction]],
    folder: ShardFolder,
) -> Iterator[tuple[int, Columns]]:
    """Writes shards by the actors of a Ray cluster: that of ``RAY_ADDRESS``, or one on this machine.

    All nodes must see the files under the same paths. A shard whose actor raises, or dies with its process or node, is
    computed again elsewhere, up to three times. Ray's checkpoints are not needed: the files are the record of what is
    done, for every engine.

    Args:
        shards: those to write; their paths are held in Ray's object store.
        options: ``CollectionOptions`` of the command; ``threads`` is the number of CPUs of an actor.
        build: loads the model in each actor.
        folder: of the results.

    Yields:
        The number of each shard that was written, and its column ``error``.

    Raises:
        UserError: Ray is not installed, or a shard failed each time.
    """
    items = [{"number": shard.number, "images": pickle.dumps(_absolute(shard))} for shard in shards]
    if not items:
        return
    ray = _start_ray()
    cpus = options.threads or 1
    if options.checkpoint is not None and os.path.exists(options.checkpoint):
        options = replace(options, checkpoint=os.path.abspath(options.checkpoint))
    context = ray.data.DataContext.get_current()
    context.actor_task_retry_on_errors, context.enable_progress_bars = True, False
    actors = max(1, int(ray.cluster_resources().get("CPU", 1)) // cpus)
    written = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _ShardWriter,
        fn_constructor_args=(options, build, folder),
        batch_size=1,
        num_cpus=cpus,
        num_gpus=1 if options.device == "cuda" else None,
        concurrency=(1, min(actors, len(items))),
        max_restarts=-1,
        max_task_retries=_RETRIES,
    )
    try:
        for row in written.iter_rows():
            yield int(row["number"]), {"error": pickle.loads(row["error"])}
    except ray.exceptions.RayError as error:
        # Ray appends traces of its own to that of the actor
        cause = str(error).partition("\n\nThe above exception was the direct cause")[0].strip().splitlines()[-1]
        raise UserError(
            f"Ray could not compute a shard, after {_RETRIES} retries: {cause}; the complete files are kept, and the "
            "same command continues"
        ) from error


class _ShardWriter:
    """Writes shards in an actor."""

    def __init__(self, options: Any, build: Callable[[Any], tuple[Any, RowFunction]], folder: ShardFolder) -> None:
        device = _use_assigned_resources()
        _, self._function = build(replace(options, threads=torch.get_num_threads(), device=device.type))
        self._batch_size, self._folder = options.batch_size, folder

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        shard: Shard = pickle.loads(batch["images"][0])
        rows = compute_rows(shard, self._function, self._batch_size, torch.get_num_threads())
        self._folder.write(shard, rows)
        return {"number": [shard.number], "error": [pickle.dumps(rows["error"])]}


def _absolute(shard: Shard) -> Shard:
    """Returns a shard that can be read in any working directory."""
    return replace(shard, images=[replace(one, file=os.path.abspath(one.file)) for one in shard.images])


def _use_assigned_resources() -> torch.device:
    """Sets the number of threads to the CPUs that Ray has assigned to this actor; returns its device."""
    import ray

    context = ray.get_runtime_context() if ray.is_initialized() else None
    if context is not None and context.worker.mode == ray.WORKER_MODE:  # the driver is assigned nothing
        assigned: dict[str, float] = context.get_assigned_resources()
        torch.set_num_threads(max(1, int(assigned.get("CPU", 1))))
        return select_device("cuda" if assigned.get("GPU") else "cpu")
    return select_device("auto")


def _start_ray() -> Any:
    import_optional("ray.data", "engine=ray", "ray")
    import ray

    if not ray.is_initialized():
        is_local = "RAY_ADDRESS" not in os.environ
        local: dict[str, Any] = {"object_store_memory": _OBJECT_STORE_BYTES, "include_dashboard": False}
        ray.init(log_to_driver=False, **(local if is_local else {}))
    return ray
