"""Images for training and evaluation: data sets, transforms, and loaders."""

from vitfast.data.image_dataset import ImageDataset as ImageDataset
from vitfast.data.image_dataset import available_splits as available_splits
from vitfast.data.image_dataset import build_dataset as build_dataset
from vitfast.data.image_file import load_image as load_image
from vitfast.data.loader import EpochBatchSampler as EpochBatchSampler
from vitfast.data.loader import ImageLoader as ImageLoader
from vitfast.data.loader import build_loader as build_loader
from vitfast.data.transforms import BatchMixing as BatchMixing
from vitfast.data.transforms import create_mixing as create_mixing
from vitfast.data.transforms import eval_transform as eval_transform
from vitfast.data.transforms import train_transform as train_transform
