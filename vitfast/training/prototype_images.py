"""The images that are nearest to SwAV's prototypes, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from vitfast.data import ImageDataset
from vitfast.evaluation.image_files import restore_pixels
from vitfast.evaluation.plots import draw_neighbours
from vitfast.tasks import SwavTask

_IMAGES, _BATCH = 2000, 100  # images that are compared
_ROWS, _COLUMNS = 10, 9


@torch.inference_mode()
def draw_prototypes(task: SwavTask, dataset: ImageDataset, device: torch.device, path: Path) -> None:
    """Draws the nearest images of the prototypes with the most images, a row for each; the nearest image comes first.

    Args:
        task: after training; it is left in evaluation mode.
        dataset: the images, without augmentation; evenly spaced ones are compared.
        device: of the task.
        path: of the PNG file.

    Raises:
        UserError: an image cannot be read.
        OSError: the file cannot be written.
    """
    task.eval()
    chosen = torch.linspace(0, len(dataset) - 1, min(_IMAGES, len(dataset))).round().long()
    scores = []
    for indices in chosen.split(_BATCH):
        images = torch.stack([dataset[index][0] for index in indices.tolist()]).to(device)
        scores.append(task.head(task.model(images))[1].float().cpu())
    scores_BK = torch.cat(scores)
    counts_K = scores_BK.argmax(dim=1).bincount(minlength=scores_BK.shape[1])
    rows: list[Any] = []
    for prototype in counts_K.argsort(descending=True, stable=True)[:_ROWS].tolist():
        values, places = scores_BK[:, prototype].topk(min(_COLUMNS, len(chosen)))
        panels = []
        for value, index in zip(values.tolist(), chosen[places].tolist(), strict=True):
            image_CHW, label = dataset[index]
            pixels = restore_pixels(image_CHW, dataset.mean, dataset.std)
            panels.append((pixels, dataset.class_names[label], value))
        rows.append((panels[0][:2], panels[1:]))
    draw_neighbours(rows, path, f"images by prototype, of {len(chosen):,}; below: class and similarity")
