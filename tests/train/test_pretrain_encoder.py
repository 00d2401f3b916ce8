"""The stand-in for a pathology encoder: which tiles it is pretrained on, and that what it writes is an encoder."""

from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from napari_lrmil.model.encoder import Encoder, EncoderSpec, load_weights
from napari_lrmil.slide import TileSpec
from training.pretrain_encoder import app, load_examples
from training.progress import Reporter


@pytest.mark.slow
def test_an_encoder_of_two_scales_is_written_as_a_config_takes_it(tmp_path: Path) -> None:
    out = tmp_path / "encoder.safetensors"
    size = ["--slides", "8", "--tiles-per-slide", "30", "--epochs", "1", "--mpp", "0.5", "--mpp", "2"]
    done = CliRunner().invoke(app, [str(out), "--work-dir", str(tmp_path / "work"), *size])
    assert done.exit_code == 0, done.output
    encoder = Encoder(EncoderSpec(options={"image_px": 64})).eval()
    load_weights(encoder, out)
    tiles = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    assert encoder(encoder.preprocess(tiles)).embedding.shape == (2, 192)

    slides = sorted((tmp_path / "work" / "slides").glob("*.tif"))[:2]
    spec, quiet = TileSpec(64, 0.5), Reporter(Console(file=StringIO()))
    some, others = (load_examples(part, spec, quiet, most=30) for part in (slides, slides[1:]))
    everything = load_examples(slides[1:], spec, quiet)
    assert len(some.tiles) == 60
    assert len(everything.tiles) > 500
    # A slide's tiles don't depend on the others, and each keeps its own attributes.
    np.testing.assert_array_equal(some.tiles[30:], others.tiles)
    index = {tile.tobytes(): place for place, tile in enumerate(everything.tiles)}
    found = [index[tile.tobytes()] for tile in others.tiles]
    assert found == sorted(set(found))
    np.testing.assert_array_equal(everything.attributes[found], others.attributes)
