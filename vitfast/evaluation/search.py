"""Nearest neighbours and near-duplicates among the embeddings that ``python -m vitfast.embed`` has written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vitfast.errors import UserError
from vitfast.evaluation.knn import BlockSearch, nearest_neighbours, search_block
from vitfast.evaluation.shards import part_files, read_record, read_rows

_BLOCK = 4096


@dataclass(frozen=True)
class Neighbours:
    """The nearest images of each query.

    Attributes:
        similarity: cosine similarities ``[M, k]``, the largest first.
        row: their rows in the index ``[M, k]``, int64; images that could not be read are not counted.
        paths: their paths; None if the index is a tensor.
    """

    similarity: Tensor
    row: Tensor
    paths: list[list[str]] | None


def knn(index: str | os.PathLike[str] | Tensor, queries: Tensor, k: int = 10) -> Neighbours:
    """Finds the nearest images by cosine similarity, exactly, by faiss if it is installed, or by products of blocks.

    Args:
        index: embeddings ``[N, C]``, or a folder of ``python -m vitfast.embed``, which is read part by part.
        queries: embeddings ``[M, C]`` of the same model.
        k: number of neighbours; all N if it is larger. Of equally similar images the first ones are taken.

    Raises:
        UserError: the folder holds no embeddings, or of another size.
        ValueError: sizes do not match, ``k`` is less than 1, or values are not finite.
    """
    if isinstance(index, Tensor):
        return Neighbours(*nearest_neighbours(index, queries, k=k, search=_search_of(queries)), paths=None)
    folder = Path(index)
    _check_width(folder, queries.shape[-1])
    queries = queries.cpu()
    parts = (features for _, features in read_embeddings(folder))
    similarity, row = nearest_neighbours(parts, queries, k=k, search=_search_of(queries))
    if row.shape[1] == 0:
        raise UserError(f"index={folder} holds no embedding")
    wanted = dict.fromkeys(row.flatten().tolist(), "")
    first = 0
    for paths, _ in read_embeddings(folder):
        wanted |= {place: paths[place - first] for place in wanted if first <= place < first + len(paths)}
        first += len(paths)
    return Neighbours(similarity, row, [[wanted[place] for place in places] for places in row.tolist()])


def _search_of(queries: Tensor) -> BlockSearch:
    """Returns faiss's exact search if it is installed, in 0.23 to 0.78 of the time (100,000 x 384, one thread)."""
    try:
        import faiss
    except ImportError:
        return search_block
    if queries.device.type != "cpu" or queries.dtype == torch.float64:
        return search_block
    faiss.omp_set_num_threads(torch.get_num_threads())

    def search(queries_BC: Tensor, images_LC: Tensor, k: int) -> tuple[Tensor, Tensor]:
        arrays = (queries_BC.detach().numpy(), images_LC.detach().numpy())
        found = faiss.knn(*arrays, min(k, len(images_LC)), metric=faiss.METRIC_INNER_PRODUCT)
        similarity_Bk, places_Bk = map(torch.from_numpy, found)
        order_Bk = places_Bk.argsort(dim=1)  # so that of equally similar images the first ones stay first
        return similarity_Bk.gather(1, order_Bk), places_Bk.gather(1, order_Bk)

    return search


def near_duplicates(folder: Path, threshold: float) -> list[list[tuple[str, float]]]:
    """Groups images that are connected by pairs of at least a cosine similarity; all embeddings are in memory.

    Args:
        folder: of ``python -m vitfast.embed``.
        threshold: the similarity.

    Returns:
        Groups of at least two images, each with its similarity to the first one of the group, which is itself 1.

    Raises:
        UserError: the folder holds no embeddings.
    """
    _check_width(folder, None)
    parts = list(read_embeddings(folder))
    paths = [path for names, _ in parts for path in names]
    if not parts:
        return []
    features_NC = F.normalize(torch.cat([features for _, features in parts]), dim=-1)
    root = list(range(len(paths)))

    def find(place: int) -> int:
        while root[place] != place:
            root[place] = root[root[place]]
            place = root[place]
        return place

    for first, rows_BC in enumerate(features_NC.split(_BLOCK)):
        for second, columns_BC in enumerate(features_NC.split(_BLOCK)[first:], start=first):
            for row, column in (rows_BC @ columns_BC.T >= threshold).nonzero().tolist():
                low, high = sorted((find(first * _BLOCK + row), find(second * _BLOCK + column)))
                root[high] = low
    groups: dict[int, list[int]] = {}
    for place in range(len(paths)):
        groups.setdefault(find(place), []).append(place)
    return [
        [(paths[place], float(features_NC[group[0]] @ features_NC[place])) for place in group]
        for group in groups.values()
        if len(group) > 1
    ]


def read_embeddings(folder: Path) -> Iterator[tuple[list[str], Tensor]]:
    """Yields the paths and embeddings ``[N, C]`` of each part, without images that could not be read."""
    for file in part_files(folder):
        rows = read_rows(file, ["path", "embedding", "error"])
        kept = [place for place, error in enumerate(rows["error"]) if error is None]
        if kept:
            features = torch.from_numpy(np.stack([np.float32(rows["embedding"][place]) for place in kept]))
            yield [rows["path"][place] for place in kept], features


def _check_width(folder: Path, width: int | None) -> None:
    record = read_record(folder)
    if not record["width"]:
        raise UserError(f"index={folder} holds predictions, not embeddings; write them with python -m vitfast.embed")
    if width not in (None, record["width"]):
        raise UserError(f"index={folder} has embeddings of {record['width']} numbers, the queries {width}")
