"""A trained model in one folder: weights, validated JSON and a model card.

``bundle.json`` says everything about how to use ``model.safetensors``; ``README.md`` is the card that a
model hub shows. There is no pickle and no code in a bundle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors.torch import save_file
from torch import Tensor

from napari_lrmil.atomic import give_usual_mode, replacing_folder
from napari_lrmil.errors import BundleError, EncoderError, is_one_line, refuse_pipe, shortened
from napari_lrmil.model.calibration import OperatingPoint, VectorScaling
from napari_lrmil.model.card import render_card, why_no_class
from napari_lrmil.model.encoder import CONVSTEM, Encoder, EncoderSpec
from napari_lrmil.model.hub import fetch_bundle, is_hub_name
from napari_lrmil.model.mil import HEADS, ABMILSpec, AnyMILSpec, MILModel, build_mil
from napari_lrmil.model.naming import BUNDLE_FILE, DEMO_BUNDLE
from napari_lrmil.model.tensors import not_finite, read_tensors, shapes_alone
from napari_lrmil.model.trust import Trust, TrustInfo
from napari_lrmil.outside import parse_json, read_file

FORMAT_VERSION = 3
"""The newest that is read; the oldest that says everything of a bundle is written, see `newer_keys`."""
WEIGHTS_NAME, CARD_NAME = "model.safetensors", "README.md"
_DEMO_PATH = Path(__file__).resolve().parents[1] / "demo" / "bundle"
_LARGEST_JSON_BYTES = 2**24
_MOST_TOKENS_AN_EDGE = 128
"""Of a tile. Attention takes the square of their square."""
LONGEST_NAME = 200


def _one_line(text: str) -> str:
    if not is_one_line(text):
        raise ValueError("a name is text on one line, without control characters")
    return text


Name = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME), AfterValidator(_one_line)]
"""What is shown as it is, on screens and terminals, and beside other names."""


class TileInput(BaseModel):
    """The tiles that the model reads, and which of them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    tile_px: int = Field(gt=0, le=8192)
    mpp: float = Field(ge=0.001, le=1000, description="µm/px; nothing finer is read")
    min_tissue: float = Field(ge=0, le=1, description="tiles with a smaller share of tissue are left out")
    apply_icc: bool = Field(default=False, description="convert to sRGB by the slide's ICC profile first")
    within: int = Field(
        default=1,
        ge=1,
        le=256,
        description="so many tiles along an edge subdivide one of the grid and tissue mask of training; absent where 1",
    )
    one_in: int = Field(
        default=1,
        ge=1,
        le=65536,
        description="a random 1 / one_in of the tiles is read, chosen by place and `seed`; absent where 1",
    )
    seed: int = Field(default=0, ge=0, description="of these; absent where all are read")


class Provenance(BaseModel):
    """Where a bundle comes from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    created: str = Field(description="UTC, ISO 8601")
    config_sha256: str
    commit: str = Field(description="of the training code, or 'unknown'")
    versions: dict[str, str]
    metrics: dict[str, float]
    training_data: str
    choice: str = Field(
        default="", description="why this of several models was exported; absent where nothing chose"
    )


class BundleInfo(BaseModel):
    """``bundle.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: Literal["lrmil-bundle"] = "lrmil-bundle"
    format_version: Literal[1, 2, 3] = 3
    name: Name
    description: str
    demonstration: bool = Field(description="true: shown as a demonstration, not for diagnosis")
    licence: str
    encoder: EncoderSpec
    token_px: int = Field(gt=0, le=8192)
    tiles: TileInput
    teacher_mpp: float = Field(ge=0.001, le=1000, description="µm/px of the teacher's tiles")
    distilled: bool = Field(
        default=True, description="whether it learned from a teacher; absent where it did"
    )
    mil: AnyMILSpec
    class_names: tuple[Name, ...] = Field(min_length=2, max_length=1000)
    temperature: float | None = Field(
        default=None, gt=0, description="the bag logits are divided by it; absent where there is `scaling`"
    )
    scaling: VectorScaling | None = None
    operating_point: OperatingPoint | None = None
    trust: TrustInfo | None = None
    provenance: Provenance
    weights_sha256: str

    @property
    def sha256(self) -> str:
        """Hash of the whole bundle: its weights and all that ``bundle.json`` says.

        Two bundles may share weights and still say different things of a slide, as with another temperature.
        """
        said = self.model_dump(
            mode="json", exclude=_usual(self)
        )  # a bundle keeps its hash where keys are added
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    @property
    def newer_keys(self) -> dict[str, Literal[2, 3]]:
        """What is said that format version 1 has no key for, with the version that it came with."""
        trust = self.trust
        came_with: dict[str, tuple[Literal[2, 3], bool]] = {
            "trust": (2, trust is not None),
            "mil.name": (3, not isinstance(self.mil, ABMILSpec)),
            "mil.projection": (3, isinstance(self.mil, ABMILSpec) and bool(self.mil.projection)),
            "mil.normalise": (3, isinstance(self.mil, ABMILSpec) and not self.mil.normalise),
            "own_slides": (3, trust is not None and trust.conformal.own_slides),
            "scaling": (3, self.scaling is not None),
            "operating_point": (3, self.operating_point is not None),
            "tiles.within": (3, self.tiles.within > 1),
            "tiles.one_in": (3, self.tiles.one_in > 1),
            "distilled": (3, not self.distilled),
            "provenance.choice": (3, bool(self.provenance.choice)),
        }
        return {name: version for name, (version, is_said) in came_with.items() if is_said}

    @model_validator(mode="after")
    def _classes_match(self) -> BundleInfo:
        if len(self.class_names) != self.mil.n_classes:
            raise ValueError(f"{len(self.class_names)} class names for {self.mil.n_classes} classes")
        if len(set(self.class_names)) != len(self.class_names):
            raise ValueError("class names repeat")
        for name in self.class_names:
            if why := why_no_class(name):
                raise ValueError(f"a class is called {name!r}, which is {why}")
        for name, version in self.newer_keys.items():
            if version > self.format_version:
                if name == "mil.name":
                    name = f"mil.name {self.mil.name}"
                raise ValueError(f"'{name}' in format version {self.format_version}; it came with {version}")
        if (self.temperature is None) == (self.scaling is None):
            raise ValueError("either 'temperature' or 'scaling' says how the bag logits are scaled")
        factors = self.mil.factors
        if factors[-1] != 1 or any(coarse % fine or coarse <= fine for coarse, fine in pairwise(factors)):
            raise ValueError(f"magnifications {factors}: each is to be a multiple of the next, the last 1")
        if len(factors) > 1 and (self.tiles.within, self.tiles.one_in) != (1, 1):
            raise ValueError("tiles.within and tiles.one_in are for heads of one magnification")
        n_classes, point = len(self.class_names), self.operating_point
        if self.scaling is not None and len(self.scaling.temperatures) != n_classes:
            raise ValueError(f"a scaling of {len(self.scaling.temperatures)} classes for {n_classes}")
        if point is not None and len(point.thresholds) != n_classes:
            raise ValueError(f"{len(point.thresholds)} thresholds for {n_classes} classes")
        if point is not None and point.positive is not None and point.positive not in self.class_names:
            raise ValueError(f"the positive class {point.positive!r} isn't one of the classes")
        return self

    @property
    def mpps(self) -> tuple[float, ...]:
        """µm/px of the tiles that the model reads, coarsest first; nothing finer than the last is read."""
        return tuple(factor * self.tiles.mpp for factor in self.mil.factors)

    @property
    def vector_scaling(self) -> VectorScaling:
        """What is done to bag logits before the softmax, in a bundle of any version."""
        if self.scaling is not None:
            return self.scaling
        assert self.temperature is not None
        return VectorScaling.of_temperature(self.temperature, len(self.class_names))


@dataclass(frozen=True)
class ModelBundle:
    """A student ready to use: encoder and MIL head in eval mode, and what `BundleInfo` says of them.

    `trust` is None in bundles without one: no set of classes and no warning of strange slides then.
    """

    info: BundleInfo
    encoder: Encoder
    mil: MILModel
    trust: Trust | None = None


@dataclass(frozen=True)
class UnloadedBundle:
    """A bundle that is known by what it says of itself; its model is loaded when a slide needs it."""

    bundle_dir: str | Path
    info: BundleInfo
    device: torch.device

    @classmethod
    def at(cls, bundle_dir: str | Path, device: torch.device) -> UnloadedBundle:
        """Read what a bundle says of itself; raises as `load_info` does."""
        return cls(bundle_dir, load_info(bundle_dir), device)

    def load(self) -> ModelBundle:
        """Load it; raises as `load_bundle` does, and where it has become another bundle meanwhile."""
        bundle = load_bundle(self.bundle_dir, device=self.device)
        if bundle.info != self.info:
            raise BundleError(f"the bundle in {self.bundle_dir} was replaced meanwhile: start again")
        return bundle


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
        `weights_sha256`, `trust` and `format_version` are filled in here; that given may be any.
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
    if target.exists() and not (target / BUNDLE_FILE).is_file() and not _is_empty_dir(target):
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
                "trust": None if trust is None else trust.info,
                "weights_sha256": _sha256(scratch / WEIGHTS_NAME),
            }
        )
        info = info.model_copy(update={"format_version": max(info.newer_keys.values(), default=1)})
        # Programs that know older versions alone refuse keys that they don't know.
        text = info.model_dump_json(indent=2, exclude=_absent_keys(info))
        (scratch / BUNDLE_FILE).write_text(text + "\n", encoding="utf-8")
        (scratch / CARD_NAME).write_text(
            render_card(json.loads(info.model_dump_json()), info.mpps), encoding="utf-8"
        )
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
    path = root / BUNDLE_FILE
    try:
        raw = _description(path)
    except FileNotFoundError as error:
        raise BundleError(f"{root} is not a model bundle: it has no {BUNDLE_FILE}") from error
    except (OSError, ValueError) as error:
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
        place = list(first["loc"])
        if len(place) > 1 and place[0] == "mil" and place[1] in HEADS:  # which of the specs, not a key
            del place[1]
        where = shortened(".".join(map(str, place))) or "the whole"
        raise BundleError(
            f"{path} is not valid: {where}: {shortened(first['msg'])} ({error.error_count()} problems in all)"
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
    shapes = _shapes(info)
    tensors = _weights(root, info, n_values=sum(shape.numel() for shape in shapes.values()))
    parts = {part: _of_part(tensors, f"{part}.") for part in ("encoder", "mil", "trust")}
    found = {
        f"{part}.{name}": value.shape for part in ("encoder", "mil") for name, value in parts[part].items()
    }
    if found != shapes:
        raise BundleError(f"the weights in {root} don't fit the model that {BUNDLE_FILE} describes")
    encoder, mil = Encoder(info.encoder), build_mil(info.mil)
    for model, part in ((encoder.vit, "encoder"), (mil, "mil")):
        own = model.state_dict()
        odd = sorted(name for name, value in parts[part].items() if value.dtype != own[name].dtype)
        if odd:
            raise BundleError(
                f"bundle {info.name!r} has numbers of another kind than the model's: {part}.{odd[0]} is "
                f"{str(parts[part][odd[0]].dtype).removeprefix('torch.')}"
            )
        model.load_state_dict(parts[part])
    try:
        with torch.inference_mode():
            mil.eval()(info.mil.smallest_bag(info.tiles.mpp))
    except Exception as error:  # as above
        raise _unusable(info, error) from error
    trust = _trust(root, info, parts["trust"])
    return ModelBundle(info, encoder.to(device).eval(), mil.to(device).eval(), trust)


def _shapes(info: BundleInfo) -> dict[str, torch.Size]:
    """The tensors of the model that a bundle describes; no memory is taken for one that would need terabytes.

    Raises
    ------
    BundleError
    EncoderError
    """
    with shapes_alone():
        encoder, mil = Encoder(info.encoder), build_mil(info.mil)
    if encoder.token_px != info.token_px:
        raise BundleError(
            f"bundle {info.name!r}: tokens of {info.token_px} px stated, the encoder's are {encoder.token_px} px"
        )
    if encoder.embed_dim != info.mil.embed_dim:
        raise BundleError(
            f"bundle {info.name!r}: the aggregator takes {info.mil.embed_dim} dimensions, the encoder gives "
            f"{encoder.embed_dim}"
        )
    edge = encoder.tokens_per_edge(info.tiles.tile_px)
    if edge > _MOST_TOKENS_AN_EDGE:
        raise EncoderError(
            f"a tile of {info.tiles.tile_px} px has {edge} x {edge} tokens of {info.token_px} px; more than "
            f"{_MOST_TOKENS_AN_EDGE} along an edge are too many to compute"
        )
    try:
        if info.encoder.architecture != CONVSTEM:  # which takes any tile of whole tokens
            encoder(torch.empty((1, 3, info.tiles.tile_px, info.tiles.tile_px), device="meta"))
    except Exception as error:  # a description from outside makes libraries raise anything
        raise _unusable(info, error) from error
    return {f"encoder.{name}": value.shape for name, value in encoder.vit.state_dict().items()} | {
        f"mil.{name}": value.shape for name, value in mil.state_dict().items()
    }


def _unusable(info: BundleInfo, error: Exception) -> BundleError:
    return BundleError(f"the model of bundle {info.name!r} can't be used ({shortened(str(error))})")


def _weights(root: Path, info: BundleInfo, *, n_values: int) -> dict[str, Tensor]:
    """The tensors of a bundle, as they were when its description was written.

    Raises
    ------
    BundleError
    """
    path = root / WEIGHTS_NAME
    n_of_trust = 0 if info.trust is None else (info.trust.ood.rank + 2) * (info.mil.embed_dim + 1)
    # Double precision at most, and a header.
    largest = 8 * (n_values + n_of_trust) + 2**24
    try:
        refuse_pipe(path)
        n_bytes = path.stat().st_size
        if n_bytes > largest:
            raise BundleError(
                f"{path} has {n_bytes:,} bytes; the model that {BUNDLE_FILE} describes takes {largest:,} at most"
            )
        if _sha256(path) != info.weights_sha256:
            raise BundleError(f"{path} is damaged: its hash is not the one in {BUNDLE_FILE}")
        tensors = read_tensors(path)
    except FileNotFoundError as error:
        raise BundleError(f"bundle {root} has no {WEIGHTS_NAME}") from error
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} can't be read ({error})") from error
    broken = not_finite(tensors)
    if broken:
        raise BundleError(f"bundle {info.name!r} has weights that aren't finite: {', '.join(broken[:3])}")
    return tensors


def resolve_bundle(bundle_dir: str | Path) -> Path:
    """The folder that a bundle's name or path means; a name on the hub is downloaded where it isn't here."""
    if is_hub_name(bundle_dir):
        return fetch_bundle(str(bundle_dir))
    if str(bundle_dir) == DEMO_BUNDLE and not Path(DEMO_BUNDLE, BUNDLE_FILE).exists():
        return _DEMO_PATH
    path = Path(bundle_dir)
    if path.is_file() and path.name == BUNDLE_FILE:
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
        raise BundleError(f"the trust part in {root} doesn't fit {BUNDLE_FILE}: {error}") from error
    return trust


def _description(path: Path) -> Any:  # whatever JSON stands there
    """The value in a bundle's JSON.

    Raises
    ------
    OSError, ValueError
    """
    raw = parse_json(read_file(path, most_bytes=_LARGEST_JSON_BYTES))
    # JSON can spell half a character, which no file can hold again.
    json.dumps(raw, ensure_ascii=False).encode()
    return raw


def _of_part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _absent_keys(info: BundleInfo) -> dict[str, bool | dict[str, bool | dict[str, bool]]]:
    """Return what has no value, and would be a key that programs of the bundle's format version don't know."""
    optional = ("temperature", "scaling", "operating_point", "trust")
    absent: dict[str, bool | dict[str, bool | dict[str, bool]]] = {
        name: True for name in optional if getattr(info, name) is None
    }
    if info.trust is not None and info.format_version < 3:
        absent["trust"] = {"conformal": {"own_slides": True}}
    usual = _usual(info)
    if isinstance(info.mil, ABMILSpec) and not info.mil.projection:
        of_mil: dict[str, bool | dict[str, bool]] = {"projection": True}
        absent["mil"] = of_mil | ({"normalise": True} if info.mil.normalise else {})
    return usual | absent


def _usual(info: BundleInfo) -> dict[str, bool | dict[str, bool | dict[str, bool]]]:
    """Return the keys of other models than a distilled student's that say nothing here."""
    usual: dict[str, bool | dict[str, bool | dict[str, bool]]] = {}
    of_tiles: dict[str, bool | dict[str, bool]] = {}
    if info.tiles.within == 1:
        of_tiles["within"] = True
    if info.tiles.one_in == 1:
        of_tiles |= {"one_in": True, "seed": True}
    if of_tiles:
        usual["tiles"] = of_tiles
    if isinstance(info.mil, ABMILSpec) and info.mil.normalise:
        usual["mil"] = {"normalise": True}
    if info.distilled:
        usual["distilled"] = True
    if not info.provenance.choice:
        usual["provenance"] = {"choice": True}
    return usual


def _is_empty_dir(path: Path) -> bool:
    return path.is_dir() and next(path.iterdir(), None) is None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
