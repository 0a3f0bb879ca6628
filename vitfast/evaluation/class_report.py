"""Precision, recall and F1 of every class, and their means: scikit-learn's classification report."""

from __future__ import annotations

import math
from typing import Any

from vitfast.evaluation.evaluation_report import per_class
from vitfast.evaluation.evaluator import Evaluation
from vitfast.text_table import percent, text_table

_FIGURES = ("precision", "recall", "f1")


def class_figures(evaluation: Evaluation, class_names: list[str]) -> list[dict[str, Any]]:
    """Returns a row for each class, then the plain mean and the mean weighted by the number of images.

    A figure that is undefined (nothing of the class, or nothing taken for it) is 0, as scikit-learn has it.

    Args:
        evaluation: detailed.
        class_names: in the order of the logits.
    """
    rows = []
    for row in per_class(evaluation, class_names):
        precision, recall = (0.0 if math.isnan(row[name]) else row[name] for name in ("precision", "recall"))
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        rows.append({"class": row["class"], "n": row["n"], "precision": precision, "recall": recall, "f1": f1})
    images = sum(row["n"] for row in rows)
    macro = {name: sum(row[name] for row in rows) / max(len(rows), 1) for name in _FIGURES}
    weighted = {name: sum(row[name] * row["n"] for row in rows) / max(images, 1) for name in _FIGURES}
    means = (("mean of the classes", macro), ("mean of the images", weighted))
    return [*rows, *({"class": name, "n": images, **figures} for name, figures in means)]


def class_table(rows: list[dict[str, Any]]) -> str:
    """Lays out what ``class_figures`` returned."""
    return text_table(
        ("class", "n", "precision", "recall", "F1"),
        [(row["class"], f"{row['n']:,}", *(percent(row[name]) for name in _FIGURES)) for row in rows],
    )
