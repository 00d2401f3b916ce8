"""Seconds a slide from file to label: all of it at high resolution against all of it at low, with one encoder.

    python -m benchmarks.slide_time [SLIDE ...] [--turns 3] [--architecture vit_small_patch14_dinov2 --tile-px 224]

Both go through `napari_lrmil.predict.predict_slide` in the same process, taking turns: open the file, find the tissue,
read its tiles, embed them, and let a head of the same size judge the bag. Only the µm/px differs, 0.5 against 2.0, and so
the level and the number of tiles. Nothing is cached from one turn to the next but what the system keeps of the file.
A slide is opened in a helper process first, once a program: that happens before the turns, and is said apart.
Weights don't change the time, so an architecture that is named gets random ones.

Without slides, four are generated (1 mm x 1 mm of tissue; `training.cohort`). Give real ones for numbers that matter.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from napari_lrmil.model.bundle import BundleInfo, ModelBundle, load_bundle
from napari_lrmil.model.encoder import Encoder, EncoderSpec
from napari_lrmil.model.mil import ABMILSpec, build_mil
from napari_lrmil.predict import predict_slide, run_to_end, student_tiles
from napari_lrmil.slide import Slide, iter_tiles
from napari_lrmil.slide.cache import shared_cache
from training.cohort import CohortConfig, generate_cohort

TARGET = 1 / 10
_PROCESS_IO = Path("/proc/self/io")


class Turn(NamedTuple):
    """One slide at one resolution."""

    seconds: float
    tiles: int
    level: int
    pixel_bytes: int
    """Of the tiles as the encoder gets them."""


def bundles(
    architecture: str | None, options: dict[str, int], tile_px: int | None, mpp_lr: float, ratio: int
) -> dict[str, ModelBundle]:
    """Return HR and LR with the same encoder object; by default that of the packaged demo bundle."""
    demo = load_bundle("demo")
    torch.manual_seed(0)
    encoder = demo.encoder
    if architecture is not None:
        encoder = Encoder(EncoderSpec(architecture=architecture, options=options)).eval()
    mil_spec = ABMILSpec(embed_dim=encoder.embed_dim, n_classes=2)
    mil = build_mil(mil_spec).eval()
    made = {}
    for name, mpp in (("HR", mpp_lr / ratio), ("LR", mpp_lr)):
        tiles = demo.info.tiles.model_copy(update={"mpp": mpp, "tile_px": tile_px or demo.info.tiles.tile_px})
        encoder.tokens_per_edge(tiles.tile_px)  # its error says which tile size would fit
        info: BundleInfo = demo.info.model_copy(
            update={
                "tiles": tiles,
                # One mask serves both grids in training; either way its pixels are about 16 µm wide.
                "teacher_mpp": mpp_lr / ratio,
                "encoder": encoder.spec,
                "mil": mil_spec,
            }
        )
        made[name] = ModelBundle(info, encoder, mil)
    return made


def classify(path: Path, bundle: ModelBundle, *, mpp: float | None, threads: int, batch_size: int) -> Turn:
    """Open, read, embed and judge a slide."""
    shared_cache().clear()
    started = time.perf_counter()
    with Slide(path, mpp=mpp) as slide:
        result = run_to_end(
            predict_slide(slide, bundle, device=torch.device("cpu"), batch_size=batch_size, threads=threads)
        )
    seconds = time.perf_counter() - started
    n = len(result.tiles)
    return Turn(seconds, n, result.level, n * bundle.info.tiles.tile_px**2 * 3)


def seconds_to_open(path: Path, *, mpp: float | None) -> float:
    """Open a slide and close it: the first time with a look by the helper process, later without."""
    started = time.perf_counter()
    Slide(path, mpp=mpp).close()
    return time.perf_counter() - started


def bytes_from_file(
    path: Path, bundle: ModelBundle, *, mpp: float | None, threads: int, batch_size: int
) -> int | None:
    """Count what opening, tissue and tiles of a slide take from the file, or from the system's copy of it.

    In a pass of its own, without the encoder: libraries read files too. None where the system doesn't count.
    """
    shared_cache().clear()
    before = _bytes_read()
    with Slide(path, mpp=mpp) as slide:
        tiles = student_tiles(slide, bundle.info)
        for _ in iter_tiles(
            slide, tiles.grid, tiles.level, tiles.places, batch_size=batch_size, threads=threads
        ):
            pass
    after = _bytes_read()
    return None if before is None or after is None else after - before


def _bytes_read() -> int | None:
    """Return the bytes that this process has got from read calls so far (Linux)."""
    try:
        lines = _PROCESS_IO.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) for line in lines if line.startswith("rchar"))


def report(
    turns: dict[str, dict[Path, list[Turn]]], file_bytes: dict[str, list[int | None]], console: Console
) -> float:
    """Print both, a slide on average; return the median over slides of LR seconds / HR seconds."""
    table = Table("", "s a slide", "tiles", "level", "MB of pixels", "MB from file")
    for name, by_slide in turns.items():
        every = [turn for found in by_slide.values() for turn in found]
        read = [count for count in file_bytes[name] if count is not None]
        table.add_row(
            name,
            f"{statistics.fmean(statistics.median(t.seconds for t in found) for found in by_slide.values()):.3f}",
            f"{statistics.fmean(turn.tiles for turn in every):.0f}",
            "/".join(sorted({str(turn.level) for turn in every})),
            f"{statistics.fmean(turn.pixel_bytes for turn in every) / 1e6:.2f}",
            f"{statistics.fmean(read) / 1e6:.2f}" if read else "not counted here",
        )
    console.print(table)
    ratios = [
        statistics.median(turn.seconds for turn in turns["LR"][path])
        / statistics.median(turn.seconds for turn in found)
        for path, found in turns["HR"].items()
    ]
    return statistics.median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("slides", nargs="*", type=Path, help="slide files; default: four generated ones")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--slide-px", type=int, default=2048, help="edge of the generated slides")
    parser.add_argument("--seed", type=int, default=0, help="of the generated slides")
    parser.add_argument("--mpp", type=float, help="µm/px of slides that say none themselves")
    parser.add_argument("--mpp-lr", type=float, default=2.0)
    parser.add_argument("--ratio", type=int, default=4)
    parser.add_argument("--architecture", help="timm ViT; default: the demo bundle's encoder")
    parser.add_argument("--img-size", type=int, help="image size that the architecture is built for")
    parser.add_argument("--tile-px", type=int, help="default: the demo bundle's")
    parser.add_argument("--threads", type=int, default=2, help="tiles decoded at once")
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args()
    console = Console()
    models = bundles(
        args.architecture,
        {} if args.img_size is None else {"img_size": args.img_size},
        args.tile_px,
        args.mpp_lr,
        args.ratio,
    )
    with tempfile.TemporaryDirectory(prefix="lrmil-slide-time-") as folder:
        slides = args.slides
        if not slides:
            config = CohortConfig(
                n_unlabelled=0, n_train=0, n_val=0, n_test=4, width_px=args.slide_px, height_px=args.slide_px
            )
            generate_cohort(Path(folder), config, seed=args.seed)
            slides = sorted((Path(folder) / "slides").glob("*.tif"))
        options = {"mpp": args.mpp, "threads": args.threads, "batch_size": args.batch_size}
        turns: dict[str, dict[Path, list[Turn]]] = {name: {} for name in models}
        first = [seconds_to_open(path, mpp=args.mpp) for path in slides]
        again = [seconds_to_open(path, mpp=args.mpp) for path in slides]
        for model in models.values():  # libraries loaded, memory mapped
            classify(slides[0], model, **options)
        file_bytes = {
            name: [bytes_from_file(path, model, **options) for path in slides]
            for name, model in models.items()
        }
        for turn in range(args.turns):
            for path in slides:
                order = list(models) if turn % 2 == 0 else list(reversed(models))
                for name in order:
                    turns[name].setdefault(path, []).append(classify(path, models[name], **options))
        encoder = args.architecture or f"demo bundle ({models['LR'].info.encoder.architecture})"
        console.print(
            f"{len(slides)} slides, {args.turns} turns, encoder {encoder}, tiles of "
            f"{models['LR'].info.tiles.tile_px} px, {torch.get_num_threads()} threads for torch"
        )
        ratio = report(turns, file_bytes, console)
        later = f", {1000 * statistics.median(first[1:]):.1f} ms for the others" if first[1:] else ""
        console.print(
            f"opening, before the turns: {1000 * first[0]:.0f} ms for the first slide, which starts the helper process"
            f"{later}; again, without the helper: {1000 * statistics.median(again):.1f} ms",
            highlight=False,
        )
    place = "within" if ratio <= TARGET else "above"
    console.print(
        f"LR / HR: {ratio:.3f} (median over slides), {place} the wanted {TARGET:.3f}", highlight=False
    )


if __name__ == "__main__":
    main()
