"""Images for training and evaluation: data sets, transforms, and loaders."""

from vitfast.data.image_dataset import ImageDataset, available_splits, build_dataset
from vitfast.data.image_file import load_image
from vitfast.data.loader import EpochBatchSampler, ImageLoader, build_loader
from vitfast.data.transforms import BatchMixing, create_mixing, eval_transform, train_transform

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
