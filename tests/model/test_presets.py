"""Presets: every number that can be checked against the model that timm builds is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from napari_lrmil.errors import EncoderError
from napari_lrmil.model.encoder import PRESETS, Encoder, EncoderSpec, find_preset

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", PRESETS)
def test_full_size_model_is_the_published_one(name: str) -> None:
    """On the meta device, without memory: token, embedding, and the published number of parameters."""
    preset = PRESETS[name]
    with torch.device("meta"):
        encoder = Encoder(preset.spec)
    assert encoder.token_px == preset.token_px
    assert encoder.embed_dim == preset.embed_dim
    assert encoder.tokens_per_edge(preset.tile_px) >= 4  # the children of the default ratio
    millions = sum(parameter.numel() for parameter in encoder.vit.parameters()) / 1e6
    # DINOv2 publishes numbers rounded down; the others are given to a part in a thousand or so.
    assert millions == pytest.approx(preset.parameters_m, rel=0.06 if name.startswith("dinov2") else 0.005)
    grid = int(preset.options["img_size"]) // preset.token_px
    assert encoder.vit.patch_embed.grid_size == (grid, grid)


def test_the_required_encoders_are_there() -> None:
    needed = {"conch", "uni", "uni2-h", "virchow2", "h-optimus-0", "h0-mini", "phikon-v2", "gpfm"}
    assert needed < set(PRESETS)
    for family in ("kaiko", "dinov2"):
        assert any(name.startswith(family) for name in PRESETS)
    assert {preset.token_px for preset in PRESETS.values()} == {8, 14, 16}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_whole(name: str) -> None:
    preset = PRESETS[name]
    assert preset.name == name
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", preset.hub_id)
    assert preset.file.endswith((".safetensors", ".bin", ".pth"))
    assert preset.licence
    assert re.search(r"arXiv:|doi:|https://", preset.citation)
    assert all(0 < value < 1 for value in (*preset.mean, *preset.std))
    assert all(0.2 <= mpp <= 2.0 for mpp in preset.mpp)
    assert list(preset.mpp) == sorted(preset.mpp)
    assert set(preset.unconfirmed) <= set(type(preset).model_fields)
    assert EncoderSpec.model_validate_json(preset.spec.model_dump_json()) == preset.spec
    assert preset.source == f"hf-hub:{preset.hub_id}/{preset.file}"
    with pytest.raises(ValidationError, match="frozen"):
        preset.mpp = (1.0,)  # type: ignore[misc]


def test_presets_are_found_whatever_the_case_and_the_nearest_is_named() -> None:
    assert find_preset("H-Optimus-0") is PRESETS["h-optimus-0"]
    with pytest.raises(EncoderError, match=r"no preset 'virchow'; there are virchow2"):
        find_preset("virchow")
    with pytest.raises(EncoderError, match=r"no preset 'zzz'; there are conch, uni, "):
        find_preset("zzz")


def test_the_table_in_the_docs_is_that_of_the_code() -> None:
    text = (ROOT / "docs" / "encoders.md").read_text(encoding="utf-8")
    rows = {
        cells[0].strip("`"): cells
        for line in text.splitlines()
        if line.startswith("| `")
        for cells in [[cell.strip() for cell in line.strip("|\n ").split("|")]]
        if len(cells) == 8
    }
    assert list(rows) == list(PRESETS)
    for name, preset in PRESETS.items():
        mark = {field: "?" if field in preset.unconfirmed else "" for field in type(preset).model_fields}
        assert rows[name] == [
            f"`{name}`",
            f"[{preset.hub_id}]({preset.url})",
            preset.licence + mark["licence"],
            "on request" if preset.gated else "open",
            str(preset.token_px),
            (", ".join(f"{mpp:g}" for mpp in preset.mpp) or "none") + mark["mpp"],
            str(preset.embed_dim),
            str(preset.tile_px),
        ]
