"""What is learned: a task turns a model and a batch into a loss."""

from __future__ import annotations

from vitfast.tasks.classification import ClassificationTask
from vitfast.tasks.distillation import DistillationTask
from vitfast.tasks.early_exit import EarlyExitTask
from vitfast.tasks.multi_exit import MultiExitTask, create_plain_task
from vitfast.tasks.task import Task
from vitfast.tasks.teacher import Teacher

__all__ = [
    "ClassificationTask",
    "DistillationTask",
    "EarlyExitTask",
    "MultiExitTask",
    "Task",
    "Teacher",
    "create_plain_task",
]
