"""Accuracy of a weighted k-nearest-neighbour classifier on frozen features (Wu et al., 2018, arXiv:1805.01978)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

# k and temperature: DINO (Caron et al., 2021, arXiv:2104.14294) and VISSL's benchmark, whose temperature is "sigma"
KNN_PROTOCOLS = {"k20": (20, 0.07), "k200": (200, 0.1)}

# queries [B, C], images [L, C] and k -> similarities [B, k] and places [B, k] of the k images of largest product
BlockSearch = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]

_TEST_BLOCK, _TRAIN_BLOCK = 1024, 16384  # 64 MiB of similarities


def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    k: int,
    temperature: float,
    test_block: int = _TEST_BLOCK,
    train_block: int = _TRAIN_BLOCK,
) -> float:
    """Classifies test images by their k nearest training images.

    A neighbour votes for its label with the weight exp(cosine similarity / ``temperature``). Of equally similar images
    the first ones are the neighbours, and of classes with the same votes the first one wins.

    Args:
        train_features: ``[N, C]``, of any norm.
        train_labels: ``[N]`` integers of at least 0.
        test_features: ``[M, C]``.
        test_labels: ``[M]``.
        k: number of neighbours; all N if it is larger.
        temperature: of the weights, above 0.
        test_block: test images that are compared at a time.
        train_block: training images that they are compared with at a time.

    Returns:
        Share of the test images whose class is their label, 0..1.

    Raises:
        ValueError: a size, ``k`` or ``temperature`` is wrong, or features are not finite.
    """
    _check_labels(train_features, train_labels, test_features, test_labels)
    similarity_Mk, index_Mk = nearest_neighbours(
        train_features, test_features, k=k, test_block=test_block, train_block=train_block
    )
    return _vote(similarity_Mk, train_labels[index_Mk], test_labels, temperature)


def knn_accuracies(
    train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor
) -> dict[str, float]:
    """Returns ``knn_accuracy`` by protocol of ``KNN_PROTOCOLS``, with one search for neighbours."""
    _check_labels(train_features, train_labels, test_features, test_labels)
    largest = max(k for k, _ in KNN_PROTOCOLS.values())
    similarity_Mk, index_Mk = nearest_neighbours(train_features, test_features, k=largest)
    label_Mk = train_labels[index_Mk]
    return {
        name: _vote(similarity_Mk[:, :k], label_Mk[:, :k], test_labels, temperature)
        for name, (k, temperature) in KNN_PROTOCOLS.items()
    }


def search_block(queries_BC: Tensor, trains_LC: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Finds the k images of largest product with each query; of equal ones the first."""
    similarity_BL = queries_BC @ trains_LC.T
    places_Bk = _largest(similarity_BL, k)
    return similarity_BL.gather(1, places_Bk), places_Bk


def nearest_neighbours(
    train_features: Tensor | Iterable[Tensor],
    test_features: Tensor,
    *,
    k: int,
    test_block: int = _TEST_BLOCK,
    train_block: int = _TRAIN_BLOCK,
    search: BlockSearch = search_block,
) -> tuple[Tensor, Tensor]:
    """Finds the k training images of largest cosine similarity for each test image, exactly.

    Memory is that of ``test_block`` x ``train_block`` similarities, beside the arguments and the result. The arguments
    are those of ``knn_accuracy``; ``train_features`` may come in parts ``[N, C]``, which are not kept. ``search``
    compares a block of both.

    Returns:
        Similarities ``[M, k]``, the largest first, and indices of the training images ``[M, k]``; k is at most N.
    """
    if k < 1 or test_block < 1 or train_block < 1:
        raise ValueError(f"k, test_block and train_block must be at least 1, got {k}, {test_block}, {train_block}")
    queries_MC = _normalize(test_features, "test_features")
    best_Mk = queries_MC.new_empty(len(queries_MC), 0)
    index_Mk = torch.empty(len(queries_MC), 0, dtype=torch.int64, device=queries_MC.device)
    known = 0
    for part in [train_features] if isinstance(train_features, Tensor) else train_features:
        _check_shapes(part, test_features)
        for trains_LC in part.split(train_block):
            trains_LC = _normalize(trains_LC, "train_features")
            blocks = zip(*(tensor.split(test_block) for tensor in (queries_MC, best_Mk, index_Mk)), strict=True)
            merged = [_merge(best, index, *search(queries, trains_LC, k), known, k) for queries, best, index in blocks]
            best_Mk, index_Mk = (torch.cat(column) for column in zip(*merged, strict=True))
            known += len(trains_LC)
    return best_Mk, index_Mk


def _merge(
    best_Bk: Tensor, index_Bk: Tensor, similarity_Bk: Tensor, places_Bk: Tensor, first: int, k: int
) -> tuple[Tensor, Tensor]:
    """Adds training images, numbered from ``first``, to the nearest ones so far."""
    # earlier images come first, so that of equal similarities the first ones are kept
    best_Bk = torch.cat([best_Bk, similarity_Bk], dim=1)
    index_Bk = torch.cat([index_Bk, places_Bk + first], dim=1)
    places_Bk = _largest(best_Bk, k)
    return best_Bk.gather(1, places_Bk), index_Bk.gather(1, places_Bk)


def _check_shapes(train_features: Tensor, test_features: Tensor) -> None:
    sizes = (train_features.shape, test_features.shape)
    if any(len(size) != 2 for size in sizes) or sizes[0][1] != sizes[1][1] or 0 in (sizes[0][0], sizes[1][0]):
        raise ValueError(
            f"features must be [N, C] and [M, C], N and M at least 1, got {[list(size) for size in sizes]}"
        )


def _normalize(features: Tensor, name: str) -> Tensor:
    """Returns features ``[B, C]`` of norm 1 (0 for a zero vector), in float32 or float64."""
    features = features if features.dtype == torch.float64 else features.float()
    if not features.isfinite().all():  # a NaN would be the most similar image
        raise ValueError(f"{name} are not finite; the model's outputs are NaN or infinite")
    return F.normalize(features, dim=1)


def _largest(values_BL: Tensor, k: int) -> Tensor:
    """Returns the places ``[B, k]`` of the k largest values, in descending order; equal ones in ascending places."""
    count = values_BL.shape[1]
    top, places = values_BL.topk(min(k + 1, count), dim=1)
    # topk takes any of several equal values, and has no order for them
    places_Bk = places[:, :k].sort(dim=1).values
    places_Bk = places_Bk.gather(1, values_BL.gather(1, places_Bk).argsort(dim=1, descending=True, stable=True))
    if k < count and (tied := top[:, k - 1] == top[:, k]).any():
        places_Bk[tied] = values_BL[tied].argsort(dim=1, descending=True, stable=True)[:, :k]
    return places_Bk


def _vote(similarity_Mk: Tensor, label_Mk: Tensor, labels: Tensor, temperature: float) -> float:
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    # a common factor does not change the vote, and the largest exponent is 0: no overflow at small temperatures
    weights_Mk = ((similarity_Mk.double() - similarity_Mk[:, :1].double()) / temperature).exp()
    votes_MK = weights_Mk.new_zeros(len(labels), int(label_Mk.max()) + 1)
    predicted_M = votes_MK.scatter_add_(1, label_Mk, weights_Mk).argmax(dim=1)
    return float((predicted_M == labels).double().mean())


def _check_labels(train_features: Tensor, train_labels: Tensor, test_features: Tensor, test_labels: Tensor) -> None:
    for name, features, labels in (("train", train_features, train_labels), ("test", test_features, test_labels)):
        if labels.shape != features.shape[:1] or labels.is_floating_point() or (labels < 0).any():
            raise ValueError(
                f"{name}_labels must be [{len(features)}] integers of at least 0, one for each row of {name}_features; "
                f"got {list(labels.shape)}, {labels.dtype}"
            )
