"""Training tasks: a task combines a model with its loss."""

from vitfast.tasks.classification import ClassificationTask, EarlyExitTask, MultiExitTask, Task, create_plain_task
from vitfast.tasks.distillation import DistillationTask, Teacher

__all__ = [
    "ClassificationTask",
    "DistillationTask",
    "EarlyExitTask",
    "MultiExitTask",
    "Task",
    "Teacher",
    "create_plain_task",
]
