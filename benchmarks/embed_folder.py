"""How many images a second are embedded, from a folder of images to a Parquet file?

    python benchmarks/embed_folder.py images=FOLDER [key=value …] json=benchmarks/results/embed_folder-MACHINE.json

``python -m vitfast.embed`` is compared with a script of timm and torch's DataLoader, and, with ``open_clip=NAME``, with
the loop that open_clip's documentation shows. The models have the same random weights, and the files are in the page
cache. The rows in brackets are parts of vitfast's work on the same images. ``--help`` lists the options.
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from vitfast.benchmarking.harness import Case
from vitfast.benchmarking.run import run_tables
from vitfast.benchmarking.run_options import RunOptions
from vitfast.benchmarking.table import Table
from vitfast.cli import run_command
from vitfast.config import load_options, option
from vitfast.data import load_image
from vitfast.data.collection import StoredImage, import_pyarrow, list_images
from vitfast.data.image_file import decode_image
from vitfast.data.preprocessing import preprocessing_settings
from vitfast.device import autocast
from vitfast.evaluation.row_functions import Embedder
from vitfast.evaluation.shards import Shard, ShardFolder, compute_rows
from vitfast.runs.trained_model import TrainedModel

CPU = torch.device("cpu")
OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass
class EmbedFolderOptions(RunOptions):
    """Measures images/s from a folder of images to a Parquet file."""

    images: str = option(help="images, as of python -m vitfast.embed")
    model: str = option("vit_tiny_patch16_224", "model of timm")
    open_clip: str | None = option(None, "model of open_clip, such as ViT-B-32, in a second table; null: none")
    precision: list[str] = option(
        ["fp32", "int8"], "of vitfast; bf16 is also the autocast of the others", choices=["fp32", "bf16", "int8"]
    )
    batch: int = option(32, "images per batch", minimum=1)
    workers: int = option(2, "processes of the DataLoader", minimum=0)
    count: int = option(200, "largest number of images per pass", minimum=1)

    def reported(self) -> dict[str, Any]:
        """All but the folder."""
        return {key: value for key, value in super().reported().items() if key != "images"}


class Files(Dataset[Tensor]):
    """Image files, as in a script: PIL, then the library's transform."""

    def __init__(self, images: Sequence[StoredImage], transform: Callable[[Any], Tensor]) -> None:
        self._images, self._transform = images, transform

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Tensor:
        return self._transform(load_image(self._images[index].file))


def list_tables(options: EmbedFolderOptions) -> list[Table]:
    """A table for each library and precision."""
    images = list(islice(list_images(options.images), options.count))
    tables = [_table(options, images, "timm", options.model, _of_timm, one) for one in options.precision]
    if options.open_clip is not None:
        name = options.open_clip
        tables += [_table(options, images, "open_clip", name, _of_open_clip, one) for one in options.precision]
    return tables


def _of_timm(name: str) -> tuple[nn.Module, Callable[[Tensor], Tensor], Callable[[Any], Tensor], dict[str, Any]]:
    """Returns a model, its embedding, its transform, and its preprocessing."""
    import timm

    model = timm.create_model(name, num_classes=0).eval()
    transform: Any = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    return model, model, transform, preprocessing_settings(model) or {}


def _of_open_clip(name: str) -> tuple[nn.Module, Callable[[Tensor], Tensor], Callable[[Any], Tensor], dict[str, Any]]:
    import open_clip

    model, _, transform = open_clip.create_model_and_transforms(name)
    size = model.visual.image_size
    settings = {"img_size": size[0] if isinstance(size, tuple) else size, "in_chans": 3, "crop_pct": 1.0}
    settings |= {"mean": OPENAI_MEAN, "std": OPENAI_STD, "interpolation": "bicubic", "resize": "short_side"}
    return model.eval(), model.encode_image, transform, settings


def _table(
    options: EmbedFolderOptions,
    images: list[StoredImage],
    library: str,
    name: str,
    create: Callable[[str], tuple[nn.Module, Callable[[Tensor], Tensor], Callable[[Any], Tensor], dict[str, Any]]],
    precision: str,
) -> Table:
    def build(table: Table) -> list[Case]:
        torch.manual_seed(0)
        model, embed, transform, settings = create(name)
        trained: Any = TrainedModel(model, Path(name), {"model": {"name": name}, "data": settings}, "model")  # type: ignore[arg-type]
        embedder = Embedder(trained, precision=precision)
        loader = DataLoader(Files(images, transform), batch_size=options.batch, num_workers=options.workers)

        def script() -> Tensor:
            with torch.inference_mode(), autocast(CPU, precision):
                return torch.cat([embed(batch).float() for batch in loader])

        folder = Path(tempfile.mkdtemp())
        output = ShardFolder(folder, "parquet", embedder, {}, {})
        shard = Shard(0, images)

        def ours() -> dict[str, list[Any]]:
            return compute_rows(shard, embedder, options.batch, torch.get_num_threads())

        table.images = len(images)
        table.reference = script()
        table.reference_name = library
        rows = ours()
        return [
            Case("vitfast", lambda: output.write(shard, ours()), lambda: torch.from_numpy(np.stack(rows["embedding"]))),
            Case(f"{library} and DataLoader", lambda: _write(folder / "script.parquet", images, script())),
            *_parts(options, embedder, images, lambda: output.write(shard, rows)),
        ]

    title = f"{library}: {name}, {len(images)} images, {precision}"
    labels = {"library": library, "model": name, "batch": options.batch, "workers": options.workers}
    return Table("embed", title, labels, precision, build)


def _parts(
    options: EmbedFolderOptions, embedder: Embedder, images: list[StoredImage], write: Callable[[], None]
) -> list[Case]:
    """The parts of vitfast's work, each with all threads."""
    contents = [image.read() for image in images]
    decoded = [decode_image(io.BytesIO(content), "", 3, embedder.shrink_to) for content in contents]
    pixels = torch.stack([embedder.fit(image) for image in decoded])
    threads = torch.get_num_threads()

    def in_threads(function: Callable[[Any], object], values: Sequence[Any]) -> None:
        with ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(function, values):
                pass

    def decode(content: bytes) -> None:
        decode_image(io.BytesIO(content), "", 3, embedder.shrink_to)

    def run_model() -> None:
        for batch in pixels.split(options.batch):
            embedder(batch)

    return [
        Case("read", lambda: in_threads(StoredImage.read, images), is_limit=True),
        Case("decode", lambda: in_threads(decode, contents), is_limit=True),
        Case("resize", lambda: in_threads(embedder.fit, decoded), is_limit=True),
        Case("model", run_model, is_limit=True),
        Case("write", write, is_limit=True),
    ]


def _write(file: Path, images: list[StoredImage], embeddings: Tensor) -> None:
    pyarrow = import_pyarrow("the script")
    columns = {"path": [image.path for image in images], "embedding": list(embeddings.numpy())}
    pyarrow.parquet.write_table(pyarrow.table(columns), file)


def main(arguments: Sequence[str]) -> int:
    options = load_options(EmbedFolderOptions, list(arguments), "python benchmarks/embed_folder.py")
    return run_tables(options, list_tables(options), CPU)[0]


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
