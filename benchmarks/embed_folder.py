"""How many images a second are embedded, from a folder of images to a Parquet file?

    python benchmarks/embed_folder.py images=FOLDER [key=value …] json=benchmarks/results/embed_folder-MACHINE.json

``python -m vitfast.embed`` is compared with a script of timm and torch's DataLoader and, with ``open_clip=NAME``, with
the loop that open_clip's documentation shows. Both run eagerly and compiled (frozen weights, channels last), on a CPU
with bf16 instructions also in bf16, with the number of workers that is fastest in a trial. All models of a table have
the same random weights, and the files are in the page cache. ``cosine`` is the smallest similarity of an image's
embedding to that of the eager script. The rows in brackets are parts of vitfast's work on the same images, the model in
the last precision. ``--help`` lists the options.
"""

from __future__ import annotations

import io
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._inductor.config
from torch import Tensor, nn
from torch.nn import functional as F
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
from vitfast.device import autocast, has_fast_bf16
from vitfast.evaluation.row_functions import Embedder
from vitfast.evaluation.shards import Shard, ShardFolder, compute_rows
from vitfast.models.preprocessing_settings import preprocessing_settings
from vitfast.runs.trained_model import TrainedModel

CPU = torch.device("cpu")
OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
Embed = Callable[[Tensor], Tensor]
Library = tuple[nn.Module, nn.Module, Callable[[Any], Tensor], dict[str, Any]]


@dataclass
class EmbedFolderOptions(RunOptions):
    """Measures images/s from a folder of images to a Parquet file."""

    images: str = option(help="images, as of python -m vitfast.embed")
    long_side: int | None = option(
        None, "pixels to which the images are resized and saved as JPEG before; null: as they are", minimum=1
    )
    model: str = option("vit_tiny_patch16_224", "model of timm")
    open_clip: str | None = option(None, "model of open_clip, such as ViT-B-32, in a second table; null: none")
    precision: list[str] = option(["fp32", "int8"], "of vitfast", choices=["fp32", "bf16", "int8"])
    compile: bool = option(True, "measure the scripts with torch.compile, too")
    batch: int = option(32, "images per batch", minimum=1)
    workers: list[int] = option([0, 1, 2], "processes of the DataLoader to try", minimum=0)
    count: int = option(96, "largest number of images per pass; best a multiple of batch", minimum=1)

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


class Projected(nn.Module):
    """open_clip's ``encode_image`` as the forward of a module, which ``torch.compile`` takes."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Returns embeddings ``[B, C]``."""
        embeddings: Tensor = self.model.encode_image(images)
        return embeddings


def list_tables(options: EmbedFolderOptions) -> list[Table]:
    """A table for each library."""
    images = list(islice(list_images(options.images), options.count))
    if options.long_side is not None:
        images = _resized(images, options.long_side)
    tables = [_table(options, images, "timm", options.model, _of_timm)]
    if options.open_clip is not None:
        tables.append(_table(options, images, "open_clip", options.open_clip, _of_open_clip))
    return tables


def _resized(images: Sequence[StoredImage], long_side: int) -> list[StoredImage]:
    folder = Path(tempfile.mkdtemp())
    for number, stored in enumerate(images):
        image = stored.load()
        scale = long_side / max(image.size)
        size = (round(image.width * scale), round(image.height * scale))
        image.resize(size).save(folder / f"{number:05}.jpg", quality=92)
    return list(list_images(str(folder)))


def _of_timm(name: str) -> Library:
    """Returns a model, the module that computes embeddings, its transform, and its preprocessing."""
    import timm

    model = timm.create_model(name, num_classes=0).eval()
    transform: Any = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    return model, model, transform, preprocessing_settings(model) or {}


def _of_open_clip(name: str) -> Library:
    import open_clip

    model, _, transform = open_clip.create_model_and_transforms(name)
    size = model.visual.image_size
    settings = {"img_size": size[0] if isinstance(size, tuple) else size, "in_chans": 3, "crop_pct": 1.0}
    settings |= {"mean": OPENAI_MEAN, "std": OPENAI_STD, "interpolation": "bicubic", "resize": "short_side"}
    return model.eval(), Projected(model), transform, settings


def _table(
    options: EmbedFolderOptions,
    images: list[StoredImage],
    library: str,
    name: str,
    create: Callable[[str], Library],
) -> Table:
    def build(table: Table) -> list[Case]:
        torch.manual_seed(0)
        model, module, transform, settings = create(name)
        folder = Path(tempfile.mkdtemp())
        script = partial(_script, file=folder / "script.parquet", images=images)
        loader = _fastest_loader(options, Files(images, transform), partial(script, embed=module, precision="fp32"))
        reference = script(loader, module, "fp32")
        table.images, table.reference, table.reference_name = len(images), reference, f"{library} eager"
        cases: list[Case] = []

        def add(subject: str, run: Callable[[], object], found: Tensor) -> None:
            cosine = float(F.cosine_similarity(found, reference).min())
            cases.append(Case(f"{subject} (cosine {cosine:.4f})", run, lambda: found))

        manifest = {"model": {"name": name}, "data": settings}
        trained = TrainedModel(model, Path(name), manifest, "model")  # type: ignore[arg-type]
        parts: list[Case] = []
        for precision in options.precision:
            embedder = Embedder(trained, precision=precision)
            output = ShardFolder(folder / precision, "parquet", embedder, {}, {})
            run = partial(_ours, options, images, embedder, output)
            rows = run()
            add(f"vitfast {precision}", run, torch.from_numpy(np.stack(rows["embedding"])))
            parts = _parts(options, embedder, images, partial(output.write, Shard(0, images), rows))
        for subject, embed, precision in _scripts(module, compile=options.compile):
            run_script = partial(script, loader, embed, precision)
            add(f"{library} {subject}, workers={loader.num_workers}", run_script, run_script())
        return cases + parts

    title = f"{library}: {name}, {len(images)} images"
    labels = {"library": library, "model": name, "batch": options.batch}
    return Table("embed", title, labels, "int8" if "int8" in options.precision else "fp32", build)


def _ours(
    options: EmbedFolderOptions, images: list[StoredImage], embedder: Embedder, output: ShardFolder
) -> dict[str, list[Any]]:
    shard = Shard(0, images)
    rows = compute_rows(shard, embedder, options.batch, torch.get_num_threads())
    output.write(shard, rows)
    return rows


def _scripts(module: nn.Module, *, compile: bool) -> list[tuple[str, Embed, str]]:
    """Lists the ways to run a model in a script: name, function, precision of autocast."""
    precisions = ["fp32", "bf16"] if has_fast_bf16(CPU) else ["fp32"]
    found: list[tuple[str, Embed, str]] = [(f"eager {one}", module, one) for one in precisions]
    if compile:
        torch._inductor.config.freezing = True
        for one in precisions:
            found.append((f"compiled {one}", torch.compile(module.to(memory_format=torch.channels_last)), one))
    return found


def _script(
    loader: DataLoader[Tensor], embed: Embed, precision: str, file: Path, images: Sequence[StoredImage]
) -> Tensor:
    """Embeds the images of a loader and writes a Parquet file."""
    with torch.inference_mode(), autocast(CPU, precision):
        embeddings = torch.cat([embed(batch).float() for batch in loader])
    pyarrow = import_pyarrow("the script")
    columns = {"path": [image.path for image in images], "embedding": list(embeddings.numpy())}
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return embeddings


def _fastest_loader(options: EmbedFolderOptions, files: Files, run: Callable[..., object]) -> DataLoader[Tensor]:
    """Returns the loader with the number of workers with which ``run(loader)`` takes the least time."""
    found = []
    for workers in options.workers:
        loader = DataLoader(files, options.batch, num_workers=workers, persistent_workers=workers > 0)
        run(loader)  # starts the workers
        start = time.perf_counter()
        run(loader)
        found.append((time.perf_counter() - start, loader))
    return min(found, key=lambda one: one[0])[1]


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


def main(arguments: Sequence[str]) -> int:
    options = load_options(EmbedFolderOptions, list(arguments), "python benchmarks/embed_folder.py")
    return run_tables(options, list_tables(options), CPU)[0]


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
