"""Bundles from the Hugging Face hub: ``hf-hub:owner/name[@revision][#sha256=...]``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ValidationError

from napari_lrmil.errors import BundleError

HUB_PREFIX = "hf-hub:"
_FILES = ("bundle.json", "model.safetensors", "README.md")
_SYNTAX = re.compile(
    r"hf-hub:(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[^@#\s]+))?(#sha256=(?P<sha256>[0-9a-fA-F]{64}))?"
)


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
    # Loaded here: it takes a while, and most bundles are folders.
    from huggingface_hub import errors as hub_errors
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repo = wanted.repo_id
    # The base of the hub's own errors and of those of the connection, such as a proxy's.
    http_error: type[Exception] = hub_errors.HTTPError  # type: ignore[attr-defined]
    try:
        return Path(snapshot_download(repo, revision=wanted.revision, allow_patterns=list(_FILES)))
    except GatedRepoError as error:
        raise BundleError(
            f"{repo} is given on request: ask for it at https://huggingface.co/{repo}, then run: hf auth login"
        ) from error
    except RepositoryNotFoundError as error:
        raise BundleError(
            f"the hub has no {repo}, or it is private. Check the name; for a private one run: hf auth login"
        ) from error
    except RevisionNotFoundError as error:
        raise BundleError(
            f"{repo} has no revision {wanted.revision!r}. See https://huggingface.co/{repo}/commits/main"
        ) from error
    except HFValidationError as error:
        raise BundleError(f"{repo!r} can't be a name on the hub ({error})") from error
    except LocalEntryNotFoundError as error:
        raise BundleError(
            f"{repo} isn't here yet and the hub can't be reached. Connect once to download it, or give the "
            "folder of a bundle."
        ) from error
    except (http_error, OSError, ValueError) as error:
        raise BundleError(f"{repo} can't be downloaded from the hub ({error}). Try again later.") from error
