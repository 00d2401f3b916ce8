"""Vision transformers of timm. Importing this takes as long as torch: `Encoder` does where an architecture is timm's."""

from __future__ import annotations

import difflib

import timm
from timm.layers import GluMlp, Mlp, SwiGLU, SwiGLUPacked, get_act_layer
from timm.models.vision_transformer import VisionTransformer

from napari_lrmil.errors import EncoderError, shortened
from napari_lrmil.model.encoder.spec import EncoderSpec, Options

_WEIGHT_OPTIONS = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}
# JSON and TOML have no classes: these options name one, of timm's and of no other.
_MLP_LAYERS = {"Mlp": Mlp, "GluMlp": GluMlp, "SwiGLU": SwiGLU, "SwiGLUPacked": SwiGLUPacked}


def build_timm_vit(spec: EncoderSpec) -> VisionTransformer:
    """Return a vision transformer without weights.

    Raises
    ------
    EncoderError
        Where the architecture is unknown, is no ViT, has no class token, or an option doesn't fit it.
    """
    # A bundle comes from strangers: its weights are its own safetensors file, never what an option points to.
    foreign = sorted(_WEIGHT_OPTIONS & spec.options.keys())
    if foreign:
        raise EncoderError(
            f"option {foreign[0]!r} of {spec.architecture!r} would load weights from elsewhere"
        )
    if not timm.is_model(spec.architecture):
        near = difflib.get_close_matches(spec.architecture, timm.list_models(), n=3)
        hint = f"; near to it are {', '.join(near)}" if near else ""
        raise EncoderError(f"timm knows no model {spec.architecture!r}{hint}")
    # Position embeddings stay at their pretraining size and are interpolated, never cut.
    options: dict[str, object] = {"dynamic_img_size": True, "num_classes": 0, **_with_layers(spec.options)}
    try:
        vit = timm.create_model(spec.architecture, pretrained=False, **options)
    except Exception as error:  # a description from outside makes libraries raise anything
        raise EncoderError(
            f"timm can't build {spec.architecture!r} with {spec.options} ({shortened(str(error))})"
        ) from error
    if not isinstance(vit, VisionTransformer) or not vit.has_class_token:
        raise EncoderError(f"{spec.architecture!r} is not a vision transformer with a class token")
    return vit


def _with_layers(options: Options) -> dict[str, object]:
    """Layer classes in place of their names."""
    resolved: dict[str, object] = dict(options)
    if "mlp_layer" in options:
        name = str(options["mlp_layer"])
        if name not in _MLP_LAYERS:
            raise EncoderError(f"no mlp_layer {name!r}; there are {', '.join(_MLP_LAYERS)}")
        resolved["mlp_layer"] = _MLP_LAYERS[name]
    if "act_layer" in options:
        name = str(options["act_layer"])
        try:
            resolved["act_layer"] = get_act_layer(name)
        except KeyError as error:
            raise EncoderError(f"timm knows no act_layer {name!r}; GELU and SiLU are two of them") from error
    return resolved
