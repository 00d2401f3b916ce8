"""The stand-in for a pathology encoder: which slides it is pretrained on, and that what it writes is an encoder."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from napari_lrmil.model.encoder import Encoder, EncoderSpec, load_weights
from training.pretrain_encoder import app, parts_of


def test_no_slide_trains_one_scale_and_validates_another() -> None:
    paths = [Path(f"{number}.tif") for number in range(40)]
    fine_train, fine_val = parts_of(paths, 16, finest=True)
    coarse_train, coarse_val = parts_of(paths, 16, finest=False)
    assert sorted(fine_train + fine_val) == sorted(paths[:16])
    assert sorted(coarse_train + coarse_val) == sorted(paths)
    assert (len(fine_val), len(coarse_val)) == (2, 5)
    assert not {*fine_train, *coarse_train} & {*fine_val, *coarse_val}


@pytest.mark.slow
def test_an_encoder_of_two_scales_is_written_as_a_config_takes_it(tmp_path: Path) -> None:
    out = tmp_path / "encoder.safetensors"
    size = ["--slides", "8", "--coarse-slides", "10", "--epochs", "1", "--mpp", "0.5", "--mpp", "2"]
    done = CliRunner().invoke(app, [str(out), "--work-dir", str(tmp_path / "work"), *size])
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "work" / "slides").glob("*.tif"))) == 10
    encoder = Encoder(EncoderSpec(options={"image_px": 64})).eval()
    load_weights(encoder, out)
    tiles = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    assert encoder(encoder.preprocess(tiles)).embedding.shape == (2, 192)
