"""Memory of end-to-end training: one step on bags of more and more tiles, with and without checkpointing.

    python -m benchmarks.end_to_end_memory [--architecture vit_tiny_patch16_224] [--tile-px 224] [--tiles 16 64 256]

Each step is done in a process of its own. Printed is by how much its peak resident memory lies above that before the
step. With checkpointing 4 times the tiles should need less than twice the memory: what grows is their pixels (uint8) and
their embeddings, and with frozen blocks what comes out of these. Without checkpointing it grows as the tiles do, so such
steps are left out beyond --most-plain tiles.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor

import torch

from benchmarks.memory import peak_bytes
from napari_lrmil.memory import give_large_blocks_back
from napari_lrmil.model.encoder import Encoder, EncoderSpec
from napari_lrmil.model.mil import build_mil
from training.stages.end_to_end import EndToEnd, EndToEndSection
from training.stages.heads import MILSection


def step(architecture: str, tile_px: int, n_tiles: int, section_json: str) -> tuple[float, float]:
    """Do one step; its seconds, and the GB by which the peak rose."""
    torch.set_num_threads(1)
    give_large_blocks_back()  # as a run does
    section = EndToEndSection.model_validate_json(section_json)
    encoder = Encoder(EncoderSpec(architecture=architecture))
    model = EndToEnd(encoder, build_mil(MILSection().spec(encoder.embed_dim, 2)), section)
    tiles = torch.randint(0, 256, (n_tiles, tile_px, tile_px, 3), dtype=torch.uint8)
    before, begin = peak_bytes(), time.perf_counter()
    torch.autograd.backward(model(tiles).bag_logits.sum())
    return time.perf_counter() - begin, (peak_bytes() - before) / 1e9


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", default="vit_tiny_patch16_224", help="timm ViT")
    parser.add_argument("--tile-px", type=int, default=224)
    parser.add_argument("--tiles", type=int, nargs="+", default=[16, 64, 256], help="of a bag")
    parser.add_argument("--chunk-tiles", type=int, default=16, help="end_to_end.chunk_tiles")
    parser.add_argument("--most-plain", type=int, default=64, help="tiles of a step without checkpointing")
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    for train in ("all", "last_blocks", "lora"):
        for checkpointing in (True, False):
            for n_tiles in options.tiles:
                if not checkpointing and n_tiles > options.most_plain:
                    continue
                section = EndToEndSection.model_validate(
                    {"train": train, "checkpointing": checkpointing, "chunk_tiles": options.chunk_tiles}
                )
                with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                    seconds, peak_gb = pool.submit(
                        step, options.architecture, options.tile_px, n_tiles, section.model_dump_json()
                    ).result()
                how = "checkpointed" if checkpointing else "plain"
                print(f"{train:12} {how:13} {n_tiles:5} tiles {peak_gb:6.2f} GB {seconds:6.1f} s", flush=True)


if __name__ == "__main__":
    main()
