"""Published encoders by name: what to build, where the weights lie, and under which terms."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from napari_lrmil.errors import EncoderError
from napari_lrmil.model.encoder.preset import EncoderPreset
from napari_lrmil.model.encoder.spec import Options

_OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
_OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
_BIOPTIMUS_MEAN = (0.707223, 0.578729, 0.703617)
_BIOPTIMUS_STD = (0.211883, 0.230117, 0.177517)
_HALF = (0.5, 0.5, 0.5)
_SWIGLU: Options = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}
_CC_NC = "CC-BY-NC-ND-4.0"


def find_preset(name: str) -> EncoderPreset:
    """A preset by name, whatever its case.

    Raises
    ------
    EncoderError
        Naming the nearest presets.
    """
    known = {key.lower(): preset for key, preset in PRESETS.items()}
    if name.lower() in known:
        return known[name.lower()]
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4) or list(known)
    raise EncoderError(f"no preset {name!r}; there are {', '.join(known[key].name for key in near)}")


def with_preset(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of an encoder, filled up from the preset that they name.

    Parameters
    ----------
    given : mapping
        Any of ``preset``, ``architecture``, ``options``, ``mean``, ``std``, ``weights``, and others. What is
        given wins, options key by key; beside another architecture than the preset's its options don't count.

    Returns
    -------
    dict

    Raises
    ------
    EncoderError
        Where the preset is unknown.
    """
    if not isinstance(given.get("preset"), str):
        return dict(given)
    preset = find_preset(given["preset"])
    filled = {
        "architecture": preset.architecture,
        "weights": preset.source,
        "mean": preset.mean,
        "std": preset.std,
        **given,
        "preset": preset.name,
    }
    options = given.get("options", {})
    if filled["architecture"] == preset.architecture and isinstance(options, Mapping):
        filled["options"] = {**preset.options, **options}
    return filled


def preset_of_repository(hub_id: str) -> EncoderPreset | None:
    """The preset whose weights lie in a repository of the hub, if there is one."""
    return next((preset for preset in PRESETS.values() if preset.hub_id.lower() == hub_id.lower()), None)


def _dinov2(letter: str, word: str, embed_dim: int, parameters_m: float, *, registers: bool) -> EncoderPreset:
    reg = "_reg4" if registers else ""
    return EncoderPreset(
        name=f"dinov2-vit{letter}14{'-reg' if registers else ''}",
        hub_id=f"timm/vit_{word}_patch14{reg}_dinov2.lvd142m",
        file="model.safetensors",
        licence="Apache-2.0",
        gated=False,
        architecture=f"vit_{word}_patch14{reg}_dinov2",
        options={"img_size": 518},
        token_px=14,
        embed_dim=embed_dim,
        mpp=(),
        parameters_m=parameters_m,
        citation="Darcet et al. 2024, arXiv:2309.16588"
        if registers
        else "Oquab et al. 2024, arXiv:2304.07193",
        note="natural images, no pathology",
    )


_SIZES = (
    ("s", "small", 384, 21),
    ("b", "base", 768, 86),
    ("l", "large", 1024, 300),
    ("g", "giant", 1536, 1100),
)

_PATHOLOGY = (
    EncoderPreset(
        name="conch",
        hub_id="MahmoodLab/CONCH",
        file="pytorch_model.bin",
        licence=_CC_NC,
        gated=True,
        architecture="vit_base_patch16_224",
        options={"img_size": 448},
        token_px=16,
        embed_dim=768,
        mean=_OPENAI_MEAN,
        std=_OPENAI_STD,
        mpp=(0.5,),
        tile_px=448,
        parameters_m=86,
        citation="Lu et al. 2024, doi:10.1038/s41591-024-02856-4",
        note="visual trunk of a CoCa: CONCH's published 512-d embedding is an attentional pooling over all tokens, "
        "LRMIL takes the trunk's class token",
        # Captioned figures have no common magnification; 20x is that of the trunk's pretraining tiles.
        unconfirmed=("mpp",),
    ),
    EncoderPreset(
        name="uni",
        hub_id="MahmoodLab/UNI",
        file="pytorch_model.bin",
        licence=_CC_NC,
        gated=True,
        architecture="vit_large_patch16_224",
        options={"img_size": 224, "init_values": 1e-5},
        token_px=16,
        embed_dim=1024,
        mpp=(0.5,),
        parameters_m=303.4,
        citation="Chen et al. 2024, doi:10.1038/s41591-024-02857-3",
    ),
    EncoderPreset(
        name="uni2-h",
        hub_id="MahmoodLab/UNI2-h",
        file="pytorch_model.bin",
        licence=_CC_NC,
        gated=True,
        architecture="vit_giant_patch14_224",
        options={
            "img_size": 224,
            "depth": 24,
            "num_heads": 24,
            "embed_dim": 1536,
            "mlp_ratio": 5.33334,
            "init_values": 1e-5,
            "reg_tokens": 8,
            "no_embed_class": True,
            **_SWIGLU,
        },
        token_px=14,
        embed_dim=1536,
        mpp=(0.5,),
        parameters_m=681.4,
        citation="Chen et al. 2024, doi:10.1038/s41591-024-02857-3",
        unconfirmed=("mpp",),  # that of UNI
    ),
    EncoderPreset(
        name="virchow2",
        hub_id="paige-ai/Virchow2",
        file="model.safetensors",
        licence=_CC_NC,
        gated=True,
        architecture="vit_huge_patch14_224",
        options={"img_size": 224, "mlp_ratio": 5.3375, "init_values": 1e-5, "reg_tokens": 4, **_SWIGLU},
        token_px=14,
        embed_dim=1280,
        mpp=(0.25, 0.5, 1.0, 2.0),
        parameters_m=631.2,
        citation="Zimmermann et al. 2024, arXiv:2408.00738",
        note="the published 2560-d embedding is class token and mean of the patch tokens; LRMIL takes the class token "
        "alone",
        unconfirmed=("file",),  # the repository holds safetensors and PyTorch weights; usual name assumed
    ),
    EncoderPreset(
        name="h-optimus-0",
        hub_id="bioptimus/H-optimus-0",
        file="pytorch_model.bin",
        licence="Apache-2.0",
        gated=False,
        architecture="vit_giant_patch14_reg4_dinov2",
        options={"img_size": 224},
        token_px=14,
        embed_dim=1536,
        mean=_BIOPTIMUS_MEAN,
        std=_BIOPTIMUS_STD,
        mpp=(0.5,),
        parameters_m=1130,
        citation="Saillard et al. 2024, https://github.com/bioptimus/releases/tree/main/models/h-optimus/v0",
    ),
    EncoderPreset(
        name="h0-mini",
        hub_id="bioptimus/H0-mini",
        file="model.safetensors",
        licence=_CC_NC,
        gated=True,
        architecture="vit_base_patch14_reg4_dinov2",
        # The ratio is the one that makes the published 85.7 million parameters with a SwiGLU.
        options={"img_size": 224, "mlp_ratio": 5.33334, **_SWIGLU},
        token_px=14,
        embed_dim=768,
        mean=_BIOPTIMUS_MEAN,
        std=_BIOPTIMUS_STD,
        mpp=(0.5,),
        parameters_m=85.7,
        citation="Filiot et al. 2025, arXiv:2501.16239",
        note="the card also offers class token and mean of the patch tokens, 1536-d; LRMIL takes the class token alone",
        # mpp and normalisation are those of H-optimus-0, its teacher.
        unconfirmed=("file", "architecture", "options", "mean", "std", "mpp"),
    ),
    EncoderPreset(
        name="phikon-v2",
        hub_id="owkin/phikon-v2",
        file="model.safetensors",
        licence="Owkin non-commercial",
        gated=False,
        architecture="vit_large_patch16_224",
        options={"img_size": 224, "init_values": 1e-5},
        token_px=16,
        embed_dim=1024,
        mpp=(0.5,),
        parameters_m=303.4,
        citation="Filiot et al. 2024, arXiv:2409.09173",
        note="a Dinov2Model of the library transformers; its names are translated to timm's while loading",
    ),
    EncoderPreset(
        name="gpfm",
        hub_id="majiabo/GPFM",
        file="GPFM.pth",
        licence=_CC_NC,
        gated=False,
        architecture="vit_large_patch14_dinov2",
        options={"img_size": 224},
        token_px=14,
        embed_dim=1024,
        mpp=(0.57,),
        parameters_m=303,
        citation="Ma et al. 2025, doi:10.1038/s41551-025-01488-4",
        note="tiles of 512 px at 40x, resized to 224 px",
        unconfirmed=("mpp", "licence"),
    ),
    *(
        EncoderPreset(
            name=name,
            hub_id=f"1aurent/{repository}.kaiko_ai_towards_large_pathology_fms",
            file="model.safetensors",
            licence="kaiko non-commercial",
            gated=False,
            architecture=architecture,
            options={"img_size": img_size},
            token_px=token_px,
            embed_dim=embed_dim,
            mean=_HALF,
            std=_HALF,
            mpp=(0.25, 0.5, 1.0, 2.0),
            parameters_m=parameters_m,
            citation="Aben et al. 2024, arXiv:2404.15217",
            note="a timm conversion of the published weights",
            unconfirmed=("mpp",),  # "multiple magnifications" is certain, which ones is not
        )
        for name, repository, architecture, img_size, token_px, embed_dim, parameters_m in (
            ("kaiko-vitb8", "vit_base_patch8_224", "vit_base_patch8_224", 224, 8, 768, 85.8),
            (
                "kaiko-vitl14",
                "vit_large_patch14_reg4_224",
                "vit_large_patch14_reg4_dinov2",
                518,
                14,
                1024,
                305,
            ),
        )
    ),
)

PRESETS: dict[str, EncoderPreset] = {
    preset.name: preset
    for preset in (
        *_PATHOLOGY,
        *(_dinov2(*size, registers=registers) for registers in (False, True) for size in _SIZES),
    )
}
