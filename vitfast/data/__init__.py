"""Images to learn from: data sets, transforms, the order of an epoch, and loaders."""

from vitfast.data.batch_mixing import BatchMixing, create_mixing
from vitfast.data.epoch_batch_sampler import EpochBatchSampler
from vitfast.data.image_dataset import ImageDataset, available_splits, build_dataset
from vitfast.data.image_file import load_image
from vitfast.data.loader import ImageLoader, build_loader
from vitfast.data.transforms import eval_transform, train_transform

__all__ = [
    "BatchMixing",
    "EpochBatchSampler",
    "ImageDataset",
    "ImageLoader",
    "available_splits",
    "build_dataset",
    "build_loader",
    "create_mixing",
    "eval_transform",
    "load_image",
    "train_transform",
]
