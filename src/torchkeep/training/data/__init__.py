"""Data to train on, as PyTorch's own loaders take it.

sources.py        data by its name, split into training and validation
folders.py        a folder of images, a folder per class
images.py         an image file, opened
samples.py        labels of samples, and what is laid around samples
identity.py       what tells a run's data from others
workers.py        errors of a loader's processes
shares.py         what each of several processes has of the samples
splitting.py      what is kept for validation
preprocessing.py  the recipe from an image to a network's input, as data
transforms.py     the recipe carried out, with augmentation
"""

from torchkeep.training.data.folders import ImageFolder
from torchkeep.training.data.images import read_image
from torchkeep.training.data.preprocessing import Preprocessing
from torchkeep.training.data.samples import Relabelled, Transformed, labels_of
from torchkeep.training.data.sources import Data, open_data, open_validation
from torchkeep.training.data.splitting import split
from torchkeep.training.data.transforms import Mixed, transform_of

__all__ = [
    "Data",
    "ImageFolder",
    "Mixed",
    "Preprocessing",
    "Relabelled",
    "Transformed",
    "labels_of",
    "open_data",
    "open_validation",
    "read_image",
    "split",
    "transform_of",
]
