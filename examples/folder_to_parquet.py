"""Writes embeddings of a collection of images to Parquet files, and finds near-duplicates in them.

    python examples/folder_to_parquet.py timm/vit_small_patch14_dinov2 'photos/*.jpg' embeddings

The model is a name as of ``python -m vitfast.embed``. Run it again after an interruption: complete files are kept.
"""

import sys
from pathlib import Path

import pyarrow.dataset

from vitfast.embed import main as embed
from vitfast.evaluation.search import near_duplicates


def main(model: str, images: str, output: str) -> None:
    """Prints the size of the table, what could not be read, and groups of similar images."""
    if embed([f"model={model}", f"images={images}", f"output={output}", "normalize=true"]):
        raise SystemExit(2)
    table = pyarrow.dataset.dataset(sorted(map(str, Path(output).glob("part-*.parquet")))).to_table()
    unreadable = table.filter(pyarrow.compute.field("error").is_valid())
    print(f"{table.num_rows} rows, {unreadable.num_rows} unreadable: {unreadable['path'].to_pylist()}")
    for group in near_duplicates(Path(output), threshold=0.98):
        print("similar:", *(path for path, _ in group))


if __name__ == "__main__":
    main(*sys.argv[1:])
