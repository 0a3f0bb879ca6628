"""What is learned: a task turns a model and a batch into a loss."""

from __future__ import annotations

from vitfast.tasks.classification import ClassificationTask
from vitfast.tasks.task import Task

__all__ = ["ClassificationTask", "Task"]
