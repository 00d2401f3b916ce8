"""The Hugging Face hub: fetching files, and bundles by name: ``hf-hub:owner/name[@revision][#sha256=...]``.

Nothing else talks to the hub. Its client is loaded where something is fetched: it takes a while, and most models are
folders.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from enum import Enum, auto
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ValidationError

from napari_lrmil.errors import BundleError, LRMILError

HUB_PREFIX = "hf-hub:"
_FILES = ("bundle.json", "model.safetensors", "README.md")
_NOT_HERE = "{repo} isn't here yet and the hub can't be reached. Connect once to download it, or give the folder of a bundle."
_SYNTAX = re.compile(
    r"hf-hub:(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^@#\s]+))?(#sha256=(?P<sha256>[0-9a-fA-F]{64}))?"
)


class HubProblem(Enum):
    """Why the hub didn't give something."""

    GATED = auto()
    NO_REPOSITORY = auto()
    NO_REVISION = auto()
    NO_FILE = auto()
    BAD_NAME = auto()
    OFFLINE = auto()
    """It isn't here, and HF_HUB_OFFLINE forbids to fetch it."""
    NOT_HERE = auto()
    """It isn't here, and the hub can't be reached."""
    UNREACHABLE = auto()
    """The connection failed on the way."""
    REFUSED = auto()
    FAILED = auto()


class HubError(LRMILError):
    """Something can't be fetched from the hub.

    The `problem` says why, for callers that know the cure; the error of the hub's client is the cause (`__cause__`).
    """

    def __init__(self, repo_id: str, problem: HubProblem, error: Exception) -> None:
        super().__init__(f"{repo_id} can't be downloaded from the hub ({error})")
        self.problem = problem


def fetch_file(repo_id: str, file: str, *, revision: str | None = None) -> Path:
    """Return a file of a repository, downloaded where it isn't here yet.

    Raises
    ------
    HubError
    """
    from huggingface_hub import hf_hub_download

    return _fetched(repo_id, lambda: hf_hub_download(repo_id, file, revision=revision))


def fetch_folder(repo_id: str, files: Sequence[str], *, revision: str | None = None) -> Path:
    """Return a folder with those of `files` that a repository has, downloaded where they aren't here yet.

    Raises
    ------
    HubError
    """
    from huggingface_hub import snapshot_download

    return _fetched(
        repo_id, lambda: snapshot_download(repo_id, revision=revision, allow_patterns=list(files))
    )


def _fetched(repo_id: str, download: Callable[[], str]) -> Path:
    from huggingface_hub.errors import HfHubHTTPError

    # Its base is that of the errors of the connection too, such as a proxy's: requests' or httpx', by its version.
    request_error: type[Exception] = HfHubHTTPError.__mro__[1]
    try:
        return Path(download())
    except (request_error, OSError, ValueError) as error:
        raise HubError(repo_id, _problem(error, request_error), error) from error


def _problem(error: Exception, request_error: type[Exception]) -> HubProblem:
    from huggingface_hub import constants, errors

    kinds: tuple[tuple[type[Exception], HubProblem], ...] = (  # the first that fits
        (errors.GatedRepoError, HubProblem.GATED),
        (errors.RepositoryNotFoundError, HubProblem.NO_REPOSITORY),
        (errors.RevisionNotFoundError, HubProblem.NO_REVISION),
        (errors.HFValidationError, HubProblem.BAD_NAME),
        (errors.LocalEntryNotFoundError, HubProblem.NOT_HERE),
        (errors.EntryNotFoundError, HubProblem.NO_FILE),
        (errors.HfHubHTTPError, HubProblem.REFUSED),
        (ConnectionError, HubProblem.UNREACHABLE),
        (TimeoutError, HubProblem.UNREACHABLE),
        (request_error, HubProblem.UNREACHABLE),
    )
    found = next((problem for kind, problem in kinds if isinstance(error, kind)), HubProblem.FAILED)
    if constants.HF_HUB_OFFLINE and found in (HubProblem.NOT_HERE, HubProblem.UNREACHABLE):
        return HubProblem.OFFLINE
    return found


class HubName(NamedTuple):
    """What a bundle's name on the hub says."""

    repo_id: str
    revision: str | None
    weights_sha256: str | None


class _StatedHash(BaseModel):
    weights_sha256: str


def is_hub_name(name: str | Path) -> bool:
    """Whether a bundle's name means the hub."""
    return str(name).startswith(HUB_PREFIX)


def parse_hub_name(name: str) -> HubName:
    """Take a name apart.

    Parameters
    ----------
    name : str
        ``hf-hub:owner/name``, then optionally ``@`` and a branch, tag or commit, then optionally ``#sha256=``
        and the hash of the weights.

    Raises
    ------
    BundleError
        Where it is none.
    """
    match = _SYNTAX.fullmatch(name)
    if match is None:
        raise BundleError(
            f"{name!r} is no bundle on the hub. Write hf-hub:owner/name, with @revision to name a version and "
            "#sha256=... (64 hex digits) to pin the weights."
        )
    pinned = match["sha256"]
    return HubName(match["repo"], match["revision"], pinned.lower() if pinned else None)


def fetch_bundle(name: str) -> Path:
    """The folder of a bundle on the hub, downloaded where it isn't here yet; what is here serves offline too.

    A pinned hash is compared with the one in ``bundle.json``, with which `load_bundle` then compares the
    weights themselves. It doesn't cover ``bundle.json``: a commit as revision does.

    Parameters
    ----------
    name : str
        See `parse_hub_name`.

    Raises
    ------
    BundleError
    """
    wanted = parse_hub_name(name)
    folder = _downloaded(wanted)
    if wanted.weights_sha256 is not None:
        try:
            text = (folder / "bundle.json").read_text(encoding="utf-8")
            stated = _StatedHash.model_validate_json(text).weights_sha256
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            raise BundleError(f"{wanted.repo_id} on the hub is not a model bundle") from error
        if stated != wanted.weights_sha256:
            raise BundleError(
                f"{wanted.repo_id} holds other weights than those pinned: {stated[:12]}... instead of "
                f"{wanted.weights_sha256[:12]}... Use the revision that they belong to (@revision), or leave the "
                "hash out if the change is wanted."
            )
    return folder


def _downloaded(wanted: HubName) -> Path:
    repo = wanted.repo_id
    try:
        return fetch_folder(repo, _FILES, revision=wanted.revision)
    except HubError as error:
        message = {
            HubProblem.GATED: f"{repo} is given on request: ask for it at https://huggingface.co/{repo}, then run: "
            "hf auth login",
            HubProblem.NO_REPOSITORY: f"the hub has no {repo}, or it is private. Check the name; for a private one "
            "run: hf auth login",
            HubProblem.NO_REVISION: f"{repo} has no revision {wanted.revision!r}. See "
            f"https://huggingface.co/{repo}/commits/main",
            HubProblem.BAD_NAME: f"{repo!r} can't be a name on the hub ({error.__cause__})",
            HubProblem.NOT_HERE: _NOT_HERE.format(repo=repo),
            HubProblem.OFFLINE: _NOT_HERE.format(repo=repo),
        }.get(error.problem, f"{error}. Try again later.")
        raise BundleError(message) from error.__cause__
