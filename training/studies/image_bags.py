"""``python -m training.studies.image_bags``: MIL heads on bags of generated digits, in the shape of the MNIST bags.

The problem is that of Ilse, Tomczak & Welling (ICML 2018, section 4.2): grey images of 28 x 28, bags of 10 of them on average
(standard deviation 2), positive where one is a 9 at least, half of the bags of either label; 50 to 500 bags to train, 1,000 to
test; AUC. MNIST itself isn't used: digits are drawn here, with Pillow's built-in font at a random size, weight, shear, angle,
place and contrast, blurred and with noise. What their paper trains, convolutions, is fixed here, as heads read
embeddings: 48 random filters of 7 x 7, rectified, the largest of each 7 x 7 places, and of all that the 64 leading principal
components of other digits, whitened. So the numbers can be set beside each other, not beside the paper's.

All heads are trained alike: AdamW, 1e-3 after an epoch of rising, weight decay 1e-3, 20 epochs, one bag a step, the last weights;
widths of 64. Heads of two magnifications read 2 x 2 digits of a bag as one coarse image, and then the digits. FOCUS reads two
random vectors in place of texts.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Annotated, NamedTuple

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from pydantic import TypeAdapter
from torch import Tensor
from torch.nn import functional as F

from napari_lrmil.errors import ConfigError
from napari_lrmil.model.mil import AnyBag, AnyMILSpec, Bag, MILSpec, build_mil
from napari_lrmil.model.mil.focus import FOCUS
from napari_lrmil.terminal import Commands, errors_as_messages
from training.loop import Recipe
from training.metrics import auc
from training.studies.mil_classic import train_head

TARGET = 9
EMBED_DIM = 64
_EDGE = 28
_N_FILTERS = 48
_WIDTH: dict[str, object] = {"projection_dim": 64, "hidden_dim": 64}
HEADS: dict[str, dict[str, object]] = {
    "mean": {"name": "mean"},
    "max": {"name": "max"},
    "abmil": {"name": "abmil", "gated": False, "hidden_dim": 64, "projection": (64,)},
    "abmil gated": {"name": "abmil", "hidden_dim": 64, "projection": (64,)},
    "clam_sb": {"name": "clam_sb", "k": 1} | _WIDTH,
    "clam_mb": {"name": "clam_mb", "k": 1} | _WIDTH,
    "dsmil": {"name": "dsmil", "query_dim": 64},
    "transmil": {"name": "transmil", "dim": 64, "landmarks": 16},
    **{f"dtfd {way}": {"name": "dtfd", "selection": way} | _WIDTH for way in ("afs", "max", "maxmin")},
    "focus": {"name": "focus", "text_dim": 64, "n_texts": 2},
    "zoommil": {"name": "zoommil", "zoom": (2,), "k": 3} | _WIDTH,
    "hdmil": {"name": "hdmil", "zoom": 2, "k": 1, "light_dim": 64} | _WIDTH,
}
"""What each has beside the widths of instances and classes; k = 1 as a positive bag has one 9 as a rule."""
_RECIPE = Recipe(epochs=20, learning_rate=1e-3, weight_decay=1e-3, seed=0, rising_epochs=1)
_SPECS: TypeAdapter[MILSpec] = TypeAdapter(AnyMILSpec)
app = Commands(add_completion=False, pretty_exceptions_enable=False)


def draw_digit(digit: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return (28, 28) grey values from 0 to 1 or so, of a digit that is drawn differently each time."""
    canvas = Image.new("L", (2 * _EDGE, 2 * _EDGE))
    font = ImageFont.load_default(size=float(rng.uniform(36, 48)))
    ImageDraw.Draw(canvas).text(
        (_EDGE, _EDGE), str(digit), fill=255, font=font, anchor="mm", stroke_width=int(rng.integers(0, 3))
    )
    angle, shear = rng.normal(0, 0.2), rng.normal(0, 0.2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[1, shear], [0, 1]]) @ np.diag(rng.uniform(0.85, 1.15, 2))
    # Output pixel (x, y) is read at matrix (x, y) + offset: the middle stays, but for a shift.
    offset = _EDGE - matrix @ [_EDGE, _EDGE] + rng.normal(0, 2.5, 2)
    moved = canvas.transform(
        canvas.size,
        Image.Transform.AFFINE,
        (*matrix[0], offset[0], *matrix[1], offset[1]),
        resample=Image.Resampling.BILINEAR,
    )
    small = moved.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 1.5)))).resize((_EDGE, _EDGE))
    grey = np.asarray(small, np.float32) / 255 * rng.uniform(0.6, 1.0)
    return np.asarray(grey + rng.normal(0, 0.1, grey.shape), np.float32)


class ImageBag(NamedTuple):
    """One bag of images."""

    images: NDArray[np.float32]
    """(n, 28, 28)"""
    digits: NDArray[np.int64]
    """(n,)"""

    @property
    def label(self) -> int:
        """1 where one is the target, else 0."""
        return int((self.digits == TARGET).any())


def draw_bags(n_bags: int, rng: np.random.Generator, *, mean_size: float = 10) -> list[ImageBag]:
    """Return bags of which every second holds the target, once or more often."""
    found = []
    for number in range(n_bags):
        size = max(1, round(rng.normal(mean_size, 2)))
        digits = rng.integers(0, 10, size)
        if number % 2:
            digits[rng.integers(size)] = TARGET
        else:
            digits[digits == TARGET] = rng.integers(0, TARGET, int((digits == TARGET).sum()))
        found.append(ImageBag(np.stack([draw_digit(digit, rng) for digit in digits.tolist()]), digits))
    return found


class RandomFeatures:
    """Fixed embeddings of images: random filters, then the principal components of digits that no bag holds.

    Parameters
    ----------
    seed : int
    n_images : int
        Of which the components are found.
    """

    def __init__(self, seed: int, *, n_images: int = 2000) -> None:
        rng = np.random.default_rng((seed, 1))
        self._filters = torch.from_numpy(rng.normal(size=(_N_FILTERS, 1, 7, 7)).astype(np.float32))
        self._filters -= self._filters.mean(dim=(2, 3), keepdim=True)
        self._filters /= self._filters.flatten(1).norm(dim=1)[:, None, None, None]
        digits = rng.integers(0, 10, n_images).tolist()
        raw = self._raw(np.stack([draw_digit(digit, rng) for digit in digits]))
        self._mean = raw.mean(dim=0)
        _, values, axes = torch.linalg.svd(raw - self._mean, full_matrices=False)
        self._axes = axes[:EMBED_DIM].T / (values[:EMBED_DIM] / n_images**0.5)  # (features, D), whitened

    def __call__(self, images: NDArray[np.float32]) -> Tensor:
        """Return the (n, D) embeddings of (n, 28, 28) images."""
        embeddings: Tensor = (self._raw(images) - self._mean) @ self._axes
        return embeddings

    def _raw(self, images: NDArray[np.float32]) -> Tensor:
        found = F.relu(F.conv2d(torch.from_numpy(images)[:, None], self._filters, padding=3))
        largest: Tensor = F.max_pool2d(found, 7).flatten(1)  # (n, 48, 28, 28) -> (n, 48, 4, 4) -> (n, 768)
        return largest


def as_bag(one: ImageBag, features: RandomFeatures, n_magnifications: int) -> AnyBag:
    """Return what a head reads of a bag; of two magnifications the coarse tiles are 2 x 2 images each, the last ones empty."""
    fine = features(one.images)
    if n_magnifications == 1:
        return Bag(fine)
    n = len(one.images)
    filled = np.zeros((-(-n // 4) * 4, _EDGE, _EDGE), np.float32)
    filled[:n] = one.images
    # (m, 2, 2, 28, 28) -> (m, 2, 28, 2, 28) -> (m, 56, 56), then the mean of 2 x 2 pixels
    mosaics = (
        filled.reshape(-1, 2, 2, _EDGE, _EDGE).transpose(0, 1, 3, 2, 4).reshape(-1, 2 * _EDGE, 2 * _EDGE)
    )
    coarse = mosaics.reshape(-1, _EDGE, 2, _EDGE, 2).mean(axis=(2, 4))
    return Bag(features(coarse)), Bag(fine, parents=torch.arange(n) // 4)


def auc_of(
    head: str,
    train: list[ImageBag],
    test: list[ImageBag],
    features: RandomFeatures,
    *,
    seed: int,
    epochs: int = _RECIPE.epochs,
) -> float:
    """Return the AUC on test bags of a head of `HEADS` that is trained on others."""
    torch.manual_seed(seed)
    spec = _SPECS.validate_python(HEADS[head] | {"embed_dim": EMBED_DIM, "n_classes": 2})
    model, n = build_mil(spec), len(spec.factors)
    if isinstance(model, FOCUS):
        model.set_text(torch.randn(model.text.shape))
    train_head(
        model,
        [(str(i), as_bag(one, features, n), one.label) for i, one in enumerate(train)],
        replace(_RECIPE, epochs=epochs, seed=seed),
        name=head,
    )
    with torch.inference_mode():
        logits = torch.stack([model(as_bag(one, features, n)).bag_logits for one in test])
    return float(auc(np.asarray([one.label for one in test]), torch.softmax(logits.double(), dim=1).numpy()))


@app.command()
def main(
    bags: Annotated[str, typer.Option(help="To train, with commas between.")] = "50,100,200,500",
    n_test: Annotated[int, typer.Option(min=2)] = 1000,
    seeds: Annotated[int, typer.Option(min=1, help="Of bags, filters and weights, from 0.")] = 1,
    heads: Annotated[str, typer.Option(help="By name, with commas between; all without it.")] = "",
) -> None:
    """Print the AUC of each head."""
    with errors_as_messages():
        wanted = [word.strip() for word in heads.split(",") if word.strip()] or list(HEADS)
        if unknown := [name for name in wanted if name not in HEADS]:
            raise ConfigError(f"no heads of these names: {', '.join(unknown)}; there are {', '.join(HEADS)}")
        try:
            sizes = [int(word) for word in bags.split(",")]
        except ValueError as error:
            raise ConfigError(f"--bags {bags!r}: numbers with commas between") from error
        if min(sizes) < 2:
            raise ConfigError(f"--bags {bags!r}: two bags at least, one of each label")
        parts = []
        for seed in range(seeds):
            rng = np.random.default_rng((seed, 0))
            parts.append((RandomFeatures(seed), draw_bags(max(sizes), rng), draw_bags(n_test, rng)))
        print(f"AUC on {n_test:,} bags of 10 digits on average, is there a {TARGET}? mean of {seeds} seeds\n")
        print(f"| head | {' | '.join(f'{n} bags' for n in sizes)} | s |")
        print(f"|---|{'---|' * len(sizes)}---|")
        for name in wanted:
            started = time.process_time()
            found = [
                np.mean(
                    [
                        auc_of(name, train[:n], test, features, seed=seed)
                        for seed, (features, train, test) in enumerate(parts)
                    ]
                )
                for n in sizes
            ]
            numbers = " | ".join(f"{value:.3f}" for value in found)
            print(f"| {name} | {numbers} | {time.process_time() - started:.0f} |", flush=True)


if __name__ == "__main__":
    app(prog_name="python -m training.studies.image_bags")
