"""Where an encoder's weights come from: a local file, or a repository of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import torch
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError
from safetensors.torch import load_file

from napari_lrmil.errors import EncoderError
from napari_lrmil.model.encoder.preset import EncoderPreset
from napari_lrmil.model.encoder.presets import find_preset, preset_of_repository
from napari_lrmil.model.encoder.state_dict import timm_state_dict
from napari_lrmil.model.encoder.vit import Encoder

_HUB = re.compile(r"^hf[-_]hub:(?:/*)(?P<id>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?(?:/(?P<file>.+))?$")
_TORCH_SUFFIXES = {".bin", ".pt", ".pth"}
_USUAL_FILES = ("model.safetensors", "pytorch_model.bin")
# What the hub's client raises where a request fails on its way: requests' or httpx' base, as its version has it.
_REQUEST_ERROR: type[Exception] = HfHubHTTPError.__mro__[1]


class _HubSource(NamedTuple):
    hub_id: str
    revision: str | None
    files: tuple[str, ...]
    preset: EncoderPreset | None


def load_weights(encoder: Encoder, source: str | Path, *, preset: str | EncoderPreset | None = None) -> None:
    """Load published or own weights into an encoder, whatever their float precision.

    Parameters
    ----------
    encoder : Encoder
    source : str or Path
        A local safetensors file, or ``hf-hub:owner/name``, ``hf-hub:owner/name/file``,
        ``hf-hub:owner/name@revision/file``. Where there is only a PyTorch file (.bin, .pt, .pth), its tensors
        are read and nothing else in it: it can't run code.
    preset : str or EncoderPreset, optional
        Whose weights they are, for the message where they are missing; found by repository without.

    Raises
    ------
    EncoderError
        Where the file is missing (with what to fetch, from where, and where to put it), unreadable, or doesn't
        fit the encoder: every tensor of the encoder must be there, and no other.

    Notes
    -----
    Names of other libraries are translated, and position embeddings of another size resampled; see
    `timm_state_dict`.
    """
    path = _resolved(source, preset, encoder.spec.architecture)
    own = encoder.vit.state_dict()
    state = timm_state_dict(_read(path), encoder.vit)
    wrong = sorted(name for name in state if name not in own or own[name].shape != state[name].shape)
    missing = sorted(set(own) - set(state))
    if wrong or missing:
        raise EncoderError(
            f"{path.name} doesn't fit {encoder.spec.architecture!r}: {len(wrong)} tensors of other name or shape "
            f"({', '.join(wrong[:3]) or 'none'}), {len(missing)} missing ({', '.join(missing[:3]) or 'none'})"
        )
    encoder.vit.load_state_dict(
        {name: value.to(own[name].dtype) for name, value in state.items()}, strict=True
    )


def weights_file(source: str | Path, *, preset: str | EncoderPreset | None = None) -> Path:
    """The local file behind a source of `load_weights`, fetched into the hub's cache where it isn't there yet.

    The cache is where HF_HOME says; with HF_HUB_OFFLINE=1 nothing is fetched. The file can be hashed: other
    content is another encoder.

    Raises
    ------
    EncoderError
        As `load_weights` does for a missing file.
    """
    return _resolved(source, preset, None)


def _resolved(source: str | Path, preset: str | EncoderPreset | None, architecture: str | None) -> Path:
    given = find_preset(preset) if isinstance(preset, str) else preset
    if re.match(r"hf[-_]hub:", str(source)):
        return _fetched(_parsed(str(source), given))
    path = Path(source)
    if path.is_file():
        return path
    if given is None:
        what = f"state dict of {architecture!r}" if architecture else "encoder's state dict"
        raise EncoderError(f"no encoder weights at {path}. Put the timm {what} there, as a safetensors file.")
    raise EncoderError(
        f"no encoder weights at {path}. {_how_to_fetch(given.hub_id, given.file, given, path)}"
    )


def _parsed(source: str, preset: EncoderPreset | None) -> _HubSource:
    match = _HUB.match(source)
    if match is None:
        raise EncoderError(
            f"{source!r} names no repository; it should be hf-hub:OWNER/NAME or hf-hub:OWNER/NAME/FILE"
        )
    known = preset_of_repository(match["id"])
    if match["file"]:
        files: tuple[str, ...] = (match["file"],)
    else:
        files = (known.file,) if known else _USUAL_FILES
    return _HubSource(match["id"], match["revision"], files, known or preset)


def _fetched(source: _HubSource) -> Path:
    failure: Exception | None = None
    for file in source.files:
        if Path(file).suffix != ".safetensors" and Path(file).suffix not in _TORCH_SUFFIXES:
            raise EncoderError(f"{file} of {source.hub_id} is neither a safetensors nor a PyTorch file")
        try:
            return Path(huggingface_hub.hf_hub_download(source.hub_id, file, revision=source.revision))
        except (OSError, ValueError, EntryNotFoundError, _REQUEST_ERROR) as error:
            failure = failure or error
            if not isinstance(error, EntryNotFoundError):
                break  # the next file would fail in the same way
    file, preset = source.files[0], source.preset
    what = f"the weights of {preset.name} " if preset else "weights "
    message = f"{what}({file} of {source.hub_id}) are not on this computer, and {_reason(failure)}. "
    name = source.hub_id.split("/")[1]
    place = (Path("weights") / name / Path(file).name).absolute()
    message += _how_to_fetch(source.hub_id, file, preset, place, gated=isinstance(failure, GatedRepoError))
    raise EncoderError(message) from failure


def _reason(error: Exception | None) -> str:
    if isinstance(error, GatedRepoError):
        return "the hub doesn't give them to you: access was not granted, or you are not logged in (hf auth login)"
    if isinstance(error, RepositoryNotFoundError):
        return "the hub knows no such repository, or it is private and you are not logged in (hf auth login)"
    if isinstance(error, HfHubHTTPError):
        return (
            "the hub has no such file or revision"
            if isinstance(error, EntryNotFoundError)
            else "the hub refused"
        )
    if isinstance(error, HFValidationError):
        return "that is no valid name of a repository"
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids fetching them"
    if isinstance(error, (EntryNotFoundError, ConnectionError, TimeoutError, _REQUEST_ERROR)):
        return "the hub can't be reached"
    return f"fetching them failed ({error})"


def _how_to_fetch(
    hub_id: str, file: str, preset: EncoderPreset | None, place: Path, *, gated: bool = False
) -> str:
    url = f"https://huggingface.co/{hub_id}"
    ask = f"Request access at {url} first. " if gated or (preset and preset.gated) else ""
    return (
        f"{ask}Fetch {file} from {url}/tree/main, put it at {place}, and set encoder.weights to this path "
        f'(--encoder.weights "{place}").'
    )


def _read(path: Path) -> Mapping[str, Any]:
    if path.suffix not in _TORCH_SUFFIXES:
        try:
            return load_file(path)
        except SafetensorError as error:
            raise EncoderError(f"{path} is not a safetensors file ({error})") from error
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, ValueError, torch.serialization.pickle.UnpicklingError) as error:  # type: ignore[attr-defined]
        raise EncoderError(
            f"{path} is not a PyTorch file of tensors alone, and nothing else is read from one. Convert it to "
            "safetensors where you trust it"
        ) from error
    if not isinstance(loaded, Mapping):
        raise EncoderError(f"{path} holds no state dict")
    return loaded
