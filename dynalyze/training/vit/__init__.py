"""Vision transformers of the paper's shape and smaller, trained with their spectra tracked."""

from dynalyze.training.vit.data import cifar, digits, image_folder
from dynalyze.training.vit.images import ArrayImages, FileImages, VisionData
from dynalyze.training.vit.model import VisionTransformer, ViTShape
from dynalyze.training.vit.options import ViTOptions
from dynalyze.training.vit.result import ViTRun
from dynalyze.training.vit.train import train_vit

__all__ = [
    "ArrayImages",
    "FileImages",
    "ViTOptions",
    "ViTRun",
    "ViTShape",
    "VisionData",
    "VisionTransformer",
    "cifar",
    "digits",
    "image_folder",
    "train_vit",
]
