"""A trained model in one folder: weights, validated JSON and a model card.

``bundle.json`` says everything about how to use ``model.safetensors``; ``README.md`` is the card that a
model hub shows. There is no pickle and no code in a bundle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from napari_lrmil.atomic import give_usual_mode, replacing_folder
from napari_lrmil.errors import BundleError
from napari_lrmil.model.card import render_card
from napari_lrmil.model.encoder import Encoder, EncoderSpec
from napari_lrmil.model.hub import fetch_bundle, is_hub_name
from napari_lrmil.model.mil import MILModel, MILSpec, build_mil
from napari_lrmil.model.trust import Trust, TrustInfo

FORMAT_VERSION = 2
"""The newest that is read; 1, without `trust`, is still written where there is none."""
JSON_NAME, WEIGHTS_NAME, CARD_NAME = "bundle.json", "model.safetensors", "README.md"
DEMO_BUNDLE = "demo"
_DEMO_PATH = Path(__file__).resolve().parents[1] / "demo" / "bundle"


class TileInput(BaseModel):
    """The tiles that the model reads, and which of them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    tile_px: int = Field(gt=0, le=8192)
    mpp: float = Field(gt=0, le=1000, description="µm/px; nothing finer is read")
    min_tissue: float = Field(ge=0, le=1, description="tiles with a smaller share of tissue are left out")
    apply_icc: bool = Field(default=False, description="convert to sRGB by the slide's ICC profile first")


class Provenance(BaseModel):
    """Where a bundle comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    created: str = Field(description="UTC, ISO 8601")
    config_sha256: str
    commit: str = Field(description="of the training code, or 'unknown'")
    versions: dict[str, str]
    metrics: dict[str, float]
    training_data: str


class BundleInfo(BaseModel):
    """``bundle.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: Literal["lrmil-bundle"] = "lrmil-bundle"
    format_version: Literal[1, 2] = 1
    name: str = Field(min_length=1)
    description: str
    demonstration: bool = Field(description="true: shown as a demonstration, not for diagnosis")
    licence: str
    encoder: EncoderSpec
    token_px: int = Field(gt=0, le=8192)
    tiles: TileInput
    teacher_mpp: float = Field(gt=0, le=1000, description="µm/px of the teacher's tiles")
    mil: MILSpec
    class_names: tuple[str, ...] = Field(min_length=2, max_length=1000)
    temperature: float = Field(gt=0, description="the bag logits are divided by it")
    trust: TrustInfo | None = None
    provenance: Provenance
    weights_sha256: str

    @property
    def sha256(self) -> str:
        """Hash of the whole bundle: its weights and all that ``bundle.json`` says.

        Two bundles may share weights and still say different things of a slide, as with another temperature.
        """
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()

    @model_validator(mode="after")
    def _classes_match(self) -> BundleInfo:
        if len(self.class_names) != self.mil.n_classes:
            raise ValueError(f"{len(self.class_names)} class names for {self.mil.n_classes} classes")
        if len(set(self.class_names)) != len(self.class_names):
            raise ValueError("class names repeat")
        if self.trust is not None and self.format_version < 2:
            raise ValueError(f"'trust' in format version {self.format_version}; it came with 2")
        return self


@dataclass(frozen=True)
class ModelBundle:
    """A student ready to use: encoder and MIL head in eval mode, and what `BundleInfo` says of them.

    `trust` is None in bundles without one: no set of classes and no warning of strange slides then.
    """

    info: BundleInfo
    encoder: Encoder
    mil: MILModel
    trust: Trust | None = None


def stored_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights as a bundle stores them, in float16; whole numbers stay as they are.

    Training rounds what it has fitted by the same function, so that what it evaluates and calibrates is what a bundle
    serves.

    Raises
    ------
    BundleError
        Where a weight doesn't fit float16.
    """
    halves = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
    broken = sorted(name for name, value in halves.items() if not bool(torch.isfinite(value).all()))
    if broken:
        raise BundleError(f"weights that aren't finite in float16: {', '.join(broken[:3])}")
    return halves


def save_bundle(
    bundle_dir: str | Path, *, info: BundleInfo, encoder: Encoder, mil: MILModel, trust: Trust | None = None
) -> BundleInfo:
    """Write a bundle, whole or not at all; an older one in the same place is replaced.

    Weights are stored as float16, which halves the file: they round by 0.05 % at most, those below 6e-5 by
    3e-8 at most.

    Parameters
    ----------
    bundle_dir : path-like
    info : BundleInfo
        `weights_sha256`, `trust` and `format_version` are filled in here.
    encoder, mil
        On any device.
    trust : Trust, optional
        Its tensors stay float32.

    Returns
    -------
    BundleInfo
        As written.

    Raises
    ------
    BundleError
        Where something else than a bundle lies there, or a weight doesn't fit float16.
    """
    if info.trust is not None and trust is None:
        raise BundleError(f"the trust part of {info.name!r} would be lost: give it to save_bundle too")
    target = Path(bundle_dir)
    if target.exists() and not (target / JSON_NAME).is_file() and not _is_empty_dir(target):
        raise BundleError(f"{target} exists and is not a model bundle; it is left as it is")
    with replacing_folder(target) as scratch:
        tensors = {f"encoder.{name}": value for name, value in encoder.vit.state_dict().items()}
        tensors |= {f"mil.{name}": value for name, value in mil.state_dict().items()}
        halves = {name: value.contiguous().cpu() for name, value in stored_weights(tensors).items()}
        if trust is not None:
            halves |= {f"trust.{name}": value for name, value in trust.tensors().items()}
        save_file(halves, scratch / WEIGHTS_NAME)
        info = info.model_copy(
            update={
                "format_version": 1 if trust is None else 2,
                "trust": None if trust is None else trust.info,
                "weights_sha256": _sha256(scratch / WEIGHTS_NAME),
            }
        )
        # Programs that know version 1 alone refuse keys that they don't know.
        text = info.model_dump_json(indent=2, exclude={"trust"} if trust is None else None)
        (scratch / JSON_NAME).write_text(text + "\n", encoding="utf-8")
        (scratch / CARD_NAME).write_text(render_card(json.loads(info.model_dump_json())), encoding="utf-8")
        give_usual_mode(scratch / WEIGHTS_NAME)
    return info


def load_info(bundle_dir: str | Path) -> BundleInfo:
    """Read and validate ``bundle.json`` alone, without building the model.

    Parameters
    ----------
    bundle_dir : path-like
        A folder, or ``"demo"`` for the one that ships with the package.

    Raises
    ------
    BundleError
    """
    root = resolve_bundle(bundle_dir)
    path = root / JSON_NAME
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BundleError(f"{root} is not a model bundle: it has no {JSON_NAME}") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise BundleError(f"{path} can't be read as JSON ({error})") from error
    if not isinstance(raw, dict) or raw.get("format") != "lrmil-bundle":
        raise BundleError(f"{path} is not the description of a model bundle")
    version = raw.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise BundleError(
            f"bundle {raw.get('name', root.name)!r} has format version {version}; this program reads up to "
            f"{FORMAT_VERSION}. Update it: pip install --upgrade napari-lrmil"
        )
    try:
        return BundleInfo.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise BundleError(
            f"{path} is not valid: {where}: {first['msg']} ({error.error_count()} problems in all)"
        ) from error


def load_bundle(bundle_dir: str | Path, *, device: torch.device | str = "cpu") -> ModelBundle:
    """Load a bundle, its weights checked against the hash in its JSON.

    Parameters
    ----------
    bundle_dir : path-like
        A folder, or ``"demo"`` for the one that ships with the package.
    device : torch.device or str

    Raises
    ------
    BundleError
    EncoderError
    """
    root = resolve_bundle(bundle_dir)
    info = load_info(root)
    weights = root / WEIGHTS_NAME
    try:
        if _sha256(weights) != info.weights_sha256:
            raise BundleError(f"{weights} is damaged: its hash is not the one in {JSON_NAME}")
        tensors = load_file(weights)
    except FileNotFoundError as error:
        raise BundleError(f"bundle {root} has no {WEIGHTS_NAME}") from error
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{weights} can't be read ({error})") from error
    broken = sorted(name for name, value in tensors.items() if not bool(torch.isfinite(value).all()))
    if broken:
        raise BundleError(f"bundle {info.name!r} has weights that aren't finite: {', '.join(broken[:3])}")
    encoder, mil = Encoder(info.encoder), build_mil(info.mil)
    if encoder.token_px != info.token_px:
        raise BundleError(
            f"bundle {info.name!r}: tokens of {info.token_px} px stated, the encoder's are {encoder.token_px} px"
        )
    try:
        encoder.vit.load_state_dict(_of_part(tensors, "encoder."))
        mil.load_state_dict(_of_part(tensors, "mil."))
    except RuntimeError as error:
        raise BundleError(f"the weights in {root} don't fit the model that {JSON_NAME} describes") from error
    encoder.tokens_per_edge(info.tiles.tile_px)
    trust = _trust(root, info, _of_part(tensors, "trust."))
    return ModelBundle(info, encoder.to(device).eval(), mil.to(device).eval(), trust)


def resolve_bundle(bundle_dir: str | Path) -> Path:
    """The folder that a bundle's name or path means; a name on the hub is downloaded where it isn't here."""
    if is_hub_name(bundle_dir):
        return fetch_bundle(str(bundle_dir))
    if str(bundle_dir) == DEMO_BUNDLE and not Path(DEMO_BUNDLE, JSON_NAME).exists():
        return _DEMO_PATH
    path = Path(bundle_dir)
    if path.is_file() and path.name == JSON_NAME:
        return path.parent
    if not path.exists():
        raise BundleError(f"no bundle at {path}")
    return path


def _trust(root: Path, info: BundleInfo, tensors: dict[str, torch.Tensor]) -> Trust | None:
    if info.trust is None and not tensors:
        return None
    try:
        if info.trust is None:
            raise ValueError("tensors of which the JSON says nothing")
        trust = Trust.of(info.trust, tensors)
        if len(trust.tiles.mean) != info.mil.embed_dim:
            raise ValueError(f"{len(trust.tiles.mean)} dimensions, the embeddings have {info.mil.embed_dim}")
    except ValueError as error:
        raise BundleError(f"the trust part in {root} doesn't fit {JSON_NAME}: {error}") from error
    return trust


def _of_part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): value.float() if value.is_floating_point() else value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }


def _is_empty_dir(path: Path) -> bool:
    return path.is_dir() and next(path.iterdir(), None) is None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
