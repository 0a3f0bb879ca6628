"""What every exit of a model says about a set of images, from which any thresholds can be judged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitfast.errors import UserError
from vitfast.inference.exit_model import as_exit_model, device_of
from vitfast.inference.exit_thresholds import check_thresholds, confidence_of, first_confident_exit


@dataclass(frozen=True)
class ExitStatistics:
    """The answers of E exits to n images.

    Attributes:
        confidence: top softmax probabilities, ``[E, n]``, float32 on the CPU.
        correct: whether the top class is the label's, ``[E, n]``, bool on the CPU.
    """

    confidence: Tensor
    correct: Tensor

    @property
    def num_exits(self) -> int:
        """How many exits there are, E."""
        return self.confidence.shape[0]

    @property
    def images(self) -> int:
        """How many images there are, n."""
        return self.confidence.shape[1]

    def exit_index(self, thresholds: Sequence[float]) -> Tensor:
        """The exit, from 0, at which each image leaves, ``[n]``."""
        return first_confident_exit(self.confidence, check_thresholds(thresholds, self.num_exits))

    def shares(self, thresholds: Sequence[float]) -> list[float]:
        """The share of the images that leaves at each exit, 0..1."""
        counts = self.exit_index(thresholds).bincount(minlength=self.num_exits)
        return (counts.double() / self.images).tolist()

    def accuracy(self, thresholds: Sequence[float]) -> float:
        """The share of the images whose answer is right at the exit at which they leave, 0..1."""
        answers = self.correct.gather(0, self.exit_index(thresholds)[None])
        return float(answers.double().mean())

    def cost(self, thresholds: Sequence[float], costs: Sequence[float]) -> float:
        """The mean cost of an image.

        Args:
            thresholds: one an exit.
            costs: of an image that leaves at each exit, the exits before included.
        """
        return sum(share * cost for share, cost in zip(self.shares(thresholds), costs, strict=True))


def collect_exit_statistics(model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]]) -> ExitStatistics:
    """Runs all exits once over a set of images.

    Args:
        model: a model with exits; its mode is put back afterwards.
        loader: gives (images ``[B, in_chans, img_size, img_size]``, labels ``[B]``).

    Raises:
        UserError: the model has no exits, the loader has no images, or logits are not finite.
    """
    device = device_of(as_exit_model(model))
    confidence: list[Tensor] = []
    correct: list[Tensor] = []
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for images, labels in loader:
                if len(labels) == 0:
                    continue
                labels = labels.to(device, non_blocking=True)
                outputs = model(images.to(device, non_blocking=True))
                confidence.append(torch.stack([confidence_of(logits) for logits in outputs]).cpu())
                correct.append(torch.stack([logits.argmax(dim=1) == labels for logits in outputs]).cpu())
    finally:
        model.train(was_training)
    if not confidence:
        raise UserError("loader gave no images; thresholds are found on a held-out set with labels")
    # made anew outside the inference mode, so that they are ordinary tensors
    statistics = ExitStatistics(torch.cat(confidence, dim=1), torch.cat(correct, dim=1))
    bad = statistics.confidence.isnan().sum(dim=1).tolist()
    if any(bad):
        raise UserError(f"the logits are not finite, by exit for {bad} of {statistics.images} images; mend the model")
    return statistics
