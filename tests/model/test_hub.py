"""Bundles by their name on the hub: from a cache as the hub's own client makes it, without a network."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import huggingface_hub
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from napari_lrmil.errors import BundleError
from napari_lrmil.model.bundle import load_bundle, load_info
from napari_lrmil.model.hub import HubName, fetch_bundle, is_hub_name, parse_hub_name

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "clinic/tiny"


@pytest.fixture
def hub_cache(tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of the hub's client after one download, and no way to the hub."""
    root = tmp_path / "hub"
    snapshot = root / "models--clinic--tiny" / "snapshots" / COMMIT
    shutil.copytree(tiny_bundle, snapshot)
    for name in ("main", "v1"):
        ref = root / "models--clinic--tiny" / "refs" / name
        ref.parent.mkdir(exist_ok=True)
        ref.write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return snapshot


@pytest.mark.parametrize(("name", "parts"), [
    ("hf-hub:a/b", ("a/b", None, None)),
    ("hf-hub:a-b.c/d_e@v1.0", ("a-b.c/d_e", "v1.0", None)),
    (f"hf-hub:a/b@refs/pr/1#sha256={'AB' * 32}", ("a/b", "refs/pr/1", "ab" * 32)),
    (f"hf-hub:a/b#sha256={'0' * 64}", ("a/b", None, "0" * 64)),
])  # fmt: skip
def test_names(name: str, parts: tuple[str, str | None, str | None]) -> None:
    assert is_hub_name(name)
    assert parse_hub_name(name) == HubName(*parts)


@pytest.mark.parametrize("name", [
    "hf-hub:", "hf-hub:a", "hf-hub:a/b/c", "hf-hub:a/b@", "hf-hub:a/b#sha256=12", "hf-hub:a/b#md5=0", "hf-hub:a /b",
    "hf-hub:a/b@x y", "HF-hub:a/b", "demo",
])  # fmt: skip
def test_no_names(name: str) -> None:
    with pytest.raises(BundleError, match=r"is no bundle on the hub\. Write hf-hub:owner/name"):
        parse_hub_name(name)


def test_what_is_here_serves_offline(hub_cache: Path) -> None:
    assert fetch_bundle(f"hf-hub:{REPO}") == hub_cache
    assert fetch_bundle(f"hf-hub:{REPO}@v1") == hub_cache
    assert fetch_bundle(f"hf-hub:{REPO}@{COMMIT}") == hub_cache


def test_offline_without_it(hub_cache: Path) -> None:
    for name in ("hf-hub:clinic/other", f"hf-hub:{REPO}@v2"):
        with pytest.raises(BundleError, match=r"the hub can't be reached\. Connect once"):
            fetch_bundle(name)


def test_only_the_files_of_a_bundle_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def download(repo_id: str, **more: Any) -> str:
        asked.update(more, repo_id=repo_id)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert fetch_bundle("hf-hub:a/b@v1") == tmp_path
    patterns = ["bundle.json", "model.safetensors", "README.md"]
    assert asked == {"repo_id": "a/b", "revision": "v1", "allow_patterns": patterns}


def test_a_pin_is_held(hub_cache: Path) -> None:
    sha = hashlib.sha256((hub_cache / "model.safetensors").read_bytes()).hexdigest()
    assert fetch_bundle(f"hf-hub:{REPO}@v1#sha256={sha.upper()}") == hub_cache
    with pytest.raises(BundleError, match=f"other weights than those pinned: {sha[:12]}"):
        fetch_bundle(f"hf-hub:{REPO}#sha256={'0' * 64}")
    # Weights that are not those the JSON states are refused on loading, so the pin holds for them too.
    (hub_cache / "model.safetensors").write_bytes(b"something else")
    assert fetch_bundle(f"hf-hub:{REPO}#sha256={sha}") == hub_cache
    with pytest.raises(BundleError, match="damaged"):
        load_bundle(hub_cache)
    (hub_cache / "bundle.json").write_text("{}")
    with pytest.raises(BundleError, match="not a model bundle"):
        fetch_bundle(f"hf-hub:{REPO}#sha256={sha}")


def _http(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    return kind("said no", response=Mock(headers={}, status_code=status))


@pytest.mark.parametrize(("error", "said"), [
    (_http(GatedRepoError, 403), "is given on request"),
    (_http(RepositoryNotFoundError, 404), "the hub has no a/b, or it is private"),
    (_http(RevisionNotFoundError, 404), "a/b has no revision 'v1'"),
    (_http(HfHubHTTPError, 500), "can't be downloaded"),
    (OSError(28, "No space left on device"), "No space left"),
    (ConnectionError("reset"), "reset"),
])  # fmt: skip
def test_failures_say_what_to_do(error: Exception, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(BundleError) as caught:
        fetch_bundle("hf-hub:a/b@v1")
    assert said in str(caught.value)
    assert caught.value.__cause__ is error


def test_the_hub_is_a_name_like_any_other(hub_cache: Path, tiny_bundle: Path) -> None:
    info = load_info(f"hf-hub:{REPO}")
    assert info == load_info(tiny_bundle)
    assert load_bundle(f"hf-hub:{REPO}@v1#sha256={info.weights_sha256}").info == info
