"""Where an encoder's weights come from: a local file, or a repository of the Hugging Face hub."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from napari_lrmil.errors import EncoderError, shortened
from napari_lrmil.model.encoder.preset import EncoderPreset
from napari_lrmil.model.encoder.presets import find_preset, preset_of_repository
from napari_lrmil.model.encoder.state_dict import timm_state_dict
from napari_lrmil.model.encoder.vit import Encoder
from napari_lrmil.model.hub import HubError, HubProblem, fetch_file
from napari_lrmil.model.tensors import not_finite, read_tensors

_HUB = re.compile(r"^hf[-_]hub:(?:/*)(?P<id>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?(?:/(?P<file>.+))?$")
_TORCH_SUFFIXES = {".bin", ".pt", ".pth"}
_USUAL_FILES = ("model.safetensors", "pytorch_model.bin")
_ABSENT = (HubProblem.NO_FILE, HubProblem.NOT_HERE, HubProblem.OFFLINE)
"""Another of the usual files may be there; after any other problem it would fail in the same way."""


class _HubSource(NamedTuple):
    hub_id: str
    revision: str | None
    files: tuple[str, ...]
    preset: EncoderPreset | None


def load_weights(
    encoder: Encoder,
    source: str | Path,
    *,
    preset: str | EncoderPreset | None = None,
    other_token_px: bool = False,
) -> None:
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
    other_token_px : bool
        Whether they may be of tokens of another size; see `timm_state_dict`.

    Raises
    ------
    EncoderError
        Where the file is missing (with what to fetch, from where, and where to put it), unreadable, or doesn't
        fit the encoder: every tensor of the encoder must be there, and no other, and all numbers must be finite.

    Notes
    -----
    Names of other libraries are translated, and position embeddings of another size resampled; see
    `timm_state_dict`.
    """
    path = _resolved(source, preset, encoder.spec.architecture)
    own = encoder.vit.state_dict()
    state = timm_state_dict(_read(path), encoder.vit, other_token_px=other_token_px)
    broken = not_finite(state)
    if broken:
        raise EncoderError(f"{path} has weights that aren't finite: {', '.join(broken[:3])}")
    wrong = sorted(name for name in state if name not in own or own[name].shape != state[name].shape)
    missing = sorted(set(own) - set(state))
    if wrong or missing:
        raise EncoderError(
            f"{path.name} doesn't fit {encoder.spec.architecture!r}: {len(wrong)} tensors of other name or shape "
            f"({shortened(', '.join(wrong[:3])) or 'none'}), {len(missing)} missing "
            f"({', '.join(missing[:3]) or 'none'})"
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
    failure: HubError | None = None
    for file in source.files:
        if Path(file).suffix != ".safetensors" and Path(file).suffix not in _TORCH_SUFFIXES:
            raise EncoderError(f"{file} of {source.hub_id} is neither a safetensors nor a PyTorch file")
        try:
            return fetch_file(source.hub_id, file, revision=source.revision)
        except HubError as error:
            failure = failure or error
            if error.problem not in _ABSENT:
                break
    assert failure is not None  # there is a file to ask for
    file, preset = source.files[0], source.preset
    what = f"the weights of {preset.name} " if preset else "weights "
    message = f"{what}({file} of {source.hub_id}) are not on this computer, and {_reason(failure)}. "
    name = source.hub_id.split("/")[1]
    place = (Path("weights") / name / Path(file).name).absolute()
    gated = failure.problem is HubProblem.GATED
    message += _how_to_fetch(source.hub_id, file, preset, place, gated=gated)
    raise EncoderError(message) from failure.__cause__


def _reason(failure: HubError) -> str:
    return {
        HubProblem.GATED: "the hub doesn't give them to you: access was not granted, or you are not logged in (hf auth "
        "login)",
        HubProblem.NO_REPOSITORY: "the hub knows no such repository, or it is private and you are not logged in (hf auth "
        "login)",
        HubProblem.NO_REVISION: "the hub has no such file or revision",
        HubProblem.NO_FILE: "the hub has no such file or revision",
        HubProblem.REFUSED: "the hub refused",
        HubProblem.BAD_NAME: "that is no valid name of a repository",
        HubProblem.OFFLINE: "HF_HUB_OFFLINE forbids fetching them",
        HubProblem.NOT_HERE: "the hub can't be reached",
        HubProblem.UNREACHABLE: "the hub can't be reached",
    }.get(failure.problem, f"fetching them failed ({failure.__cause__})")


def _how_to_fetch(
    hub_id: str, file: str, preset: EncoderPreset | None, place: Path, *, gated: bool = False
) -> str:
    url = f"https://huggingface.co/{hub_id}"
    ask = f"Request access at {url} first. " if gated or (preset and preset.gated) else ""
    return (
        f"{ask}Fetch {file} from {url}/tree/main, put it at {place}, and set encoder.weights to this path "
        f'(--encoder.weights "{place}").'
    )


def _read(path: Path) -> Mapping[str, object]:
    if path.suffix not in _TORCH_SUFFIXES:
        try:
            return read_tensors(path)
        except (OSError, ValueError) as error:
            raise EncoderError(f"{path} is not a safetensors file ({error})") from error
    try:
        _check_container(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file from outside makes libraries raise anything
        raise EncoderError(
            f"{path} is not a PyTorch file of tensors alone, and nothing else is read from one. Convert it to "
            "safetensors where you trust it"
        ) from error
    if not isinstance(loaded, Mapping):
        raise EncoderError(f"{path} holds no state dict")
    return loaded


def _check_container(path: Path) -> None:
    """Raise ValueError where a file isn't what `torch.save` writes: an archive of unpacked files, or a pickle.

    Others would be unpacked into memory, or into a folder, before they are refused.
    """
    with path.open("rb") as file:
        begin = file.read(4)
    if begin[:2] == b"PK":
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("it is packed")
    elif begin[:1] != b"\x80":
        raise ValueError("it is of another kind")
