"""Encoders: vision transformers that turn tiles into embeddings, their presets and where weights come from."""

from napari_lrmil.model.encoder.preset import EncoderPreset
from napari_lrmil.model.encoder.presets import PRESETS, find_preset, with_preset
from napari_lrmil.model.encoder.spec import CONVSTEM, IMAGENET_MEAN, IMAGENET_STD, EncoderSpec
from napari_lrmil.model.encoder.vit import Encoder, EncoderOutput, child_means
from napari_lrmil.model.encoder.weights import load_weights, weights_file

__all__ = [
    "CONVSTEM",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "PRESETS",
    "Encoder",
    "EncoderOutput",
    "EncoderPreset",
    "EncoderSpec",
    "child_means",
    "find_preset",
    "load_weights",
    "weights_file",
    "with_preset",
]
