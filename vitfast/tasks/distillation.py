"""Learning from labels and from a teacher."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from vitfast.tasks.task import Task
from vitfast.tasks.teacher import Teacher

DistillationKind = Literal["hard", "soft"]
SoftMean = Literal["elements", "images"]


class DistillationTask(Task):
    """A model with a distillation token: its class logits learn the labels, its distillation logits the teacher.

    loss = (1 - alpha) * cross-entropy(class logits, labels) + alpha * distillation, where distillation is

    ====================  =============================================================================  ============
    kind, soft_mean       distillation                                                                   from
    ====================  =============================================================================  ============
    ``hard``              cross-entropy with the teacher's first choice                                  DeiT
    ``soft``, elements    T² · KL(teacher / T, student / T), sum over images and classes / (B · K)        DeiT
    ``soft``, images      the same sum / B                                                               myrtle-vision
    ====================  =============================================================================  ============

    (Touvron et al., 2021, section 4; ``losses.py`` of DeiT; ``distill.py`` of myrtle-vision v1.0.0, whose alpha is the
    share of the labels.) In evaluation the loss is the plain cross-entropy of what the model answers there.

    Args:
        model: images -> (class logits, distillation logits) in training, logits in evaluation, each [B, K].
        teacher: answers for the same images.
        kind: see the table.
        alpha: share of the teacher, 0..1.
        temperature: T, above 0; ``soft`` only.
        soft_mean: see the table.
        label_smoothing: of the labels, as in ``Task``; the teacher's answers are not smoothed.

    Raises:
        ValueError: if a number is out of its range.
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
        """Runs student and teacher; see ``Task.forward``. ``output`` is the mean of both heads, as DeiT's answer."""
        if not self.training:
            logits = self.model(images).float()
            return {"loss": self.cross_entropy(logits, labels), "output": logits.detach()}
        class_logits, distillation_logits = (logits.float() for logits in self.model(images))
        from_labels = self.cross_entropy(class_logits, labels)
        from_teacher = self._distill(distillation_logits, self.teacher(images))
        loss = (1 - self.alpha) * from_labels + self.alpha * from_teacher
        return {"loss": loss, "output": ((class_logits + distillation_logits) / 2).detach()}

    def _distill(self, student_BK: Tensor, teacher_BK: Tensor) -> Tensor:
        if self.kind == "hard":
            return functional.cross_entropy(student_BK, teacher_BK.argmax(dim=1))
        student_log = functional.log_softmax(student_BK / self.temperature, dim=1)
        teacher_log = functional.log_softmax(teacher_BK / self.temperature, dim=1)
        divergence = functional.kl_div(student_log, teacher_log, reduction="sum", log_target=True)
        count = student_BK.numel() if self.soft_mean == "elements" else len(student_BK)
        return divergence * (self.temperature**2 / count)
