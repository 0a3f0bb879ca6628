"""Training tasks: a task combines a model with its loss."""

from vitfast.tasks.classification import ClassificationTask as ClassificationTask
from vitfast.tasks.classification import EarlyExitTask as EarlyExitTask
from vitfast.tasks.classification import MultiExitTask as MultiExitTask
from vitfast.tasks.classification import Task as Task
from vitfast.tasks.classification import create_plain_task as create_plain_task
from vitfast.tasks.distillation import DistillationTask as DistillationTask
from vitfast.tasks.distillation import Teacher as Teacher
from vitfast.tasks.swav import sinkhorn as sinkhorn
from vitfast.tasks.swav import swav_loss as swav_loss
from vitfast.tasks.swav_task import SwavTask as SwavTask
