"""Knowledge distillation: learning from labels and from a teacher model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitfast.tasks.classification import Task

DistillationKind = Literal["hard", "soft"]
SoftMean = Literal["elements", "images"]


class Teacher:
    """A frozen model in evaluation mode that predicts the images of its student.

    It is not part of the student: it is neither saved, averaged nor trained with it, and copies of a task share it.

    Args:
        model: images [B, C, H, W] -> logits [B, K]; set to evaluation mode, without gradients.
        mean: channel means of the teacher's normalization.
        std: channel standard deviations of the teacher's normalization.
        student_mean: channel means of the student's normalization, from which images are converted.
        student_std: channel standard deviations of the student's normalization.
    """

    def __init__(
        self,
        model: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        student_mean: Sequence[float],
        student_std: Sequence[float],
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        device = next(model.parameters()).device
        mean_C, std_C, student_mean_C, student_std_C = (
            torch.tensor(list(values), dtype=torch.float64) for values in (mean, std, student_mean, student_std)
        )
        # (x * student_std + student_mean - mean) / std
        self._scale_C11 = (student_std_C / std_C).float().view(-1, 1, 1).to(device)
        self._shift_C11 = ((student_mean_C - mean_C) / std_C).float().view(-1, 1, 1).to(device)
        self._same = torch.equal(mean_C, student_mean_C) and torch.equal(std_C, student_std_C)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Returns float32 logits [B, K] for images [B, C, H, W] in the student's normalization, mixed or not."""
        logits: Tensor = self.model(images if self._same else images * self._scale_C11 + self._shift_C11)
        return logits.float()

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        return self


class DistillationTask(Task):
    """A model with a distillation token: its class logits learn the labels, its distillation logits the teacher.

    loss = (1 - alpha) * cross-entropy(class logits, labels) + alpha * distillation, where distillation is

    ====================  =============================================================================  ============
    kind, soft_mean       distillation                                                                   from
    ====================  =============================================================================  ============
    ``hard``              cross-entropy with the teacher's top-1 class                                   DeiT
    ``soft``, elements    T² · KL(teacher / T, student / T), sum over images and classes / (B · K)        DeiT
    ``soft``, images      the same sum / B                                                               myrtle-vision
    ====================  =============================================================================  ============

    (Touvron et al., 2021, section 4; ``losses.py`` of DeiT; ``distill.py`` of myrtle-vision v1.0.0, whose alpha is the
    share of the labels.) The evaluation loss is the plain cross-entropy of the model's evaluation output. In training,
    ``output`` is the mean of both heads.

    Args:
        model: images -> (class logits, distillation logits) in training, logits in evaluation, each [B, K].
        teacher: predicts the same images.
        kind: see the table.
        alpha: weight of the teacher, 0..1.
        temperature: T, above 0; ``soft`` only.
        soft_mean: see the table.
        label_smoothing: of the labels, as in ``Task``; the teacher's predictions are not smoothed.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: Teacher,
        *,
        kind: DistillationKind = "hard",
        alpha: float = 0.5,
        temperature: float = 1.0,
        soft_mean: SoftMean = "elements",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(model, label_smoothing)
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"alpha is {alpha}; it must be in 0..1")
        if temperature <= 0.0:
            raise ValueError(f"temperature is {temperature}; it must be above 0")
        self.teacher = teacher
        self.kind = kind
        self.alpha = alpha
        self.temperature = temperature
        self.soft_mean = soft_mean

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        if not self.training:
            logits = self.model(images).float()
            return {"loss": self.cross_entropy(logits, labels), "output": logits.detach()}
        class_logits, distillation_logits = (logits.float() for logits in self.model(images))
        label_loss = self.cross_entropy(class_logits, labels)
        teacher_loss = self._distillation_loss(distillation_logits, self.teacher(images))
        loss = (1 - self.alpha) * label_loss + self.alpha * teacher_loss
        return {"loss": loss, "output": ((class_logits + distillation_logits) / 2).detach()}

    def _distillation_loss(self, student_BK: Tensor, teacher_BK: Tensor) -> Tensor:
        if self.kind == "hard":
            return functional.cross_entropy(student_BK, teacher_BK.argmax(dim=1))
        student_log = functional.log_softmax(student_BK / self.temperature, dim=1)
        teacher_log = functional.log_softmax(teacher_BK / self.temperature, dim=1)
        divergence = functional.kl_div(student_log, teacher_log, reduction="sum", log_target=True)
        count = student_BK.numel() if self.soft_mean == "elements" else len(student_BK)
        return divergence * (self.temperature**2 / count)
