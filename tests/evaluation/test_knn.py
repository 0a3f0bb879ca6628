"""The nearest-neighbour classifier, against a loop in float64."""

from __future__ import annotations

import math

import pytest
import torch

from vitfast.evaluation.knn import KNN_PROTOCOLS, knn_accuracies, knn_accuracy, nearest_neighbours


def loop_accuracy(train, train_labels, test, test_labels, k: int, temperature: float) -> float:
    """As Wu et al. (2018) define it, one image at a time; ties as documented."""
    right = 0
    for row, label in zip(test.double(), test_labels.tolist(), strict=True):
        similarity = (train.double() @ row / row.norm() / train.double().norm(dim=1)).tolist()
        order = sorted(range(len(train)), key=lambda index: (-similarity[index], index))[:k]
        votes: dict[int, float] = {}
        for index in order:
            voter = int(train_labels[index])
            votes[voter] = votes.get(voter, 0.0) + math.exp((similarity[index] - 1) / temperature)
        right += min(votes, key=lambda name: (-votes[name], name)) == label
    return right / len(test)


def features(count: int, classes: int = 4):
    labels = torch.randint(classes, (count,))
    scale = torch.rand(count, 1) * 9 + 0.1  # a classifier without normalization differs
    return scale * (torch.randn(count, 6) + torch.eye(classes, 6)[labels]), labels


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (20, 1e-3), (500, 0.1)])
def test_it_agrees_with_a_loop(k, temperature):
    train, test = features(60), features(40)
    expected = loop_accuracy(*train, *test, k, temperature)
    for test_block, train_block in ((1024, 16384), (7, 11), (40, 1), (1, 60)):
        blocks = {"test_block": test_block, "train_block": train_block}
        assert knn_accuracy(*train, *test, k=k, temperature=temperature, **blocks) == expected, blocks
    assert 0.25 < expected < 1


def test_both_protocols_come_from_one_search():
    train, test = features(300), features(400)
    expected = {name: knn_accuracy(*train, *test, k=k, temperature=t) for name, (k, t) in KNN_PROTOCOLS.items()}
    assert knn_accuracies(*train, *test) == expected
    assert set(expected) == {"k20", "k200"}
    assert expected["k20"] != expected["k200"]


@pytest.mark.parametrize("train_block", [1, 3, 100])
def test_of_equal_images_the_first_are_neighbours(train_block):
    train = torch.tensor([[0.0, 1.0], *[[2.0, 0.0]] * 9])  # image 0 is orthogonal, the others are equal
    similarity, index = nearest_neighbours(train, torch.tensor([[1.0, 0.0]]), k=3, train_block=train_block)
    assert index.tolist() == [[1, 2, 3]]
    assert similarity.tolist() == [[1.0, 1.0, 1.0]]
    labels = torch.tensor([5, 3, 2, 2, *[4] * 6])
    for k, winner in ((1, 3), (2, 2), (3, 2), (9, 4), (10, 4)):  # with k=2 labels 3 and 2 have the same votes
        found = knn_accuracy(train, labels, train[1:2], torch.tensor([winner]), k=k, temperature=0.1)
        assert found == 1, (k, winner)


def test_half_precision_and_zero_vectors_are_valid():
    train, test = features(30), features(10)
    train[0][3] = 0
    half = knn_accuracy(train[0].bfloat16(), train[1], test[0].bfloat16(), test[1], k=5, temperature=0.07)
    rounded = (train[0].bfloat16().float(), train[1], test[0].bfloat16().float(), test[1])
    assert half == knn_accuracy(*rounded, k=5, temperature=0.07)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k, test_block and train_block must be at least 1, got 0"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"train_features": torch.full((30, 6), math.nan)}, "train_features are not finite"),
        ({"test_features": torch.ones(10, 5)}, r"got \[\[30, 6\], \[10, 5\]\]"),
        ({"test_labels": torch.zeros(9, dtype=torch.int64)}, r"test_labels must be \[10\] integers"),
        ({"train_labels": torch.full((30,), -1)}, r"train_labels must be \[30\] integers of at least 0"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    (train, train_labels), (test, test_labels) = features(30), features(10)
    given = {"train_features": train, "train_labels": train_labels, "test_features": test, "test_labels": test_labels}
    with pytest.raises(ValueError, match=message):
        knn_accuracy(**{**given, "k": 5, "temperature": 0.1, **change})
