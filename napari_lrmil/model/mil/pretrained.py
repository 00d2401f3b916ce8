"""A published ABMIL head as the starting point of one here, as FEATHER's (Shao et al., ICML 2025, arXiv 2506.09022).

Weights come from a safetensors file and are matched by name and by shape. Three families of names are known: those of
this package, those of MIL-Lab, whose FEATHER models are gated ABMIL heads after one projection, and those of CLAM-SB.
The projection, the attention and, where the classes are as many and it is asked for, the classifier are taken. Heads
published elsewhere have no layer norm in front: give the spec ``normalise=False``, or they read other numbers than they
were trained on.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from napari_lrmil.errors import LRMILError
from napari_lrmil.model.mil.abmil import ABMIL, ABMILSpec
from napari_lrmil.model.tensors import not_finite, read_tensors

_PARTS = {
    r"(?:projection\.(\d+)\.0|patch_embed\.(\d+)|attention_net\.(0))": "projection",
    r"(?:value|(?:global_attn|attention_net\.\d+)\.attention_a\.0)": "value",
    r"(?:gate|(?:global_attn|attention_net\.\d+)\.attention_b\.0)": "gate",
    r"(?:score|(?:global_attn|attention_net\.\d+)\.attention_c)": "score",
    r"classifiers?": "classifier",
    r"norm": "norm",
}
"""Published name of a layer, without what its owner puts in front -> what it is here."""
_PREFIX = re.compile(r"^(?:module\.|model\.|mil\.)*")


class PretrainedHeadError(LRMILError):
    """A published head doesn't fit: the message says which of its weights, and what would."""


class PretrainedHead(NamedTuple):
    """A published ABMIL head by the names of this package."""

    path: Path
    weights: dict[str, Tensor]
    """For `ABMIL.load_state_dict`; without an instance classifier."""

    @property
    def spec(self) -> ABMILSpec:
        """What it fits: widths, number of classes (2 where it has no classifier), gate and layer norm."""
        widths = [len(self.weights[name]) for name in self._projection_names()]
        first = self.weights[self._projection_names()[0]] if widths else self.weights["value.weight"]
        classifier = self.weights.get("classifier.weight")
        return ABMILSpec(
            embed_dim=first.shape[1],
            n_classes=2 if classifier is None else max(2, len(classifier)),
            hidden_dim=len(self.weights["value.weight"]),
            gated="gate.weight" in self.weights,
            projection=tuple(widths),
            normalise="norm.weight" in self.weights,
        )

    def _projection_names(self) -> list[str]:
        return sorted(name for name in self.weights if re.fullmatch(r"projection\.\d+\.0\.weight", name))


def read_pretrained(path: Path) -> PretrainedHead:
    """Read a published head.

    Parameters
    ----------
    path : Path
        A safetensors file.

    Raises
    ------
    PretrainedHeadError
        Where it isn't such a file or holds no ABMIL head of one attention branch.
    OSError
        Where it can't be read.
    """
    try:
        raw = read_tensors(path)
    except ValueError as error:
        raise PretrainedHeadError(f"{path} isn't a safetensors file of a head: {error}") from error
    if bad := not_finite(raw):
        raise PretrainedHeadError(f"{path}: {', '.join(bad[:5])} hold numbers that aren't finite")
    found: dict[str, Tensor] = {}
    layers: dict[int, str] = {}
    for name, value in raw.items():
        layer, _, kind = _PREFIX.sub("", name).rpartition(".")
        for pattern, part in _PARTS.items():
            match = re.fullmatch(pattern, layer)
            if match is None or kind not in ("weight", "bias"):
                continue
            if part == "projection":
                place = int(next(group for group in match.groups() if group is not None))
                layers[place] = layer
                part = f"projection.{place}.0"
            found[f"{part}.{kind}"] = value
    # Published layers are numbered with their activations between them: 0, 3, 6.
    order = {place: index for index, place in enumerate(sorted(layers))}
    weights = {
        re.sub(r"^projection\.(\d+)", lambda m: f"projection.{order[int(m[1])]}", name): value
        for name, value in found.items()
    }
    missing = [name for name in ("value.weight", "score.weight") if name not in weights]
    if missing:
        known = ", ".join(sorted(raw)[:6]) or "nothing"
        raise PretrainedHeadError(
            f"{path} holds no ABMIL head whose names are known: no {' and no '.join(missing)} among {known} ...; "
            "known are heads of this program, of MIL-Lab (FEATHER) and CLAM-SB"
        )
    if len(weights["score.weight"]) != 1:
        raise PretrainedHeadError(
            f"{path} has {len(weights['score.weight'])} attention branches, where ABMIL has one"
        )
    return PretrainedHead(path, weights)


def start_from(model: ABMIL, head: PretrainedHead, *, classifier: bool = False) -> list[str]:
    """Give a fresh head the published weights.

    Parameters
    ----------
    model : ABMIL
    head : PretrainedHead
    classifier : bool
        Whether to take the classifier too: its classes are those of the published head.

    Returns
    -------
    list of str
        The weights that stay fresh.

    Raises
    ------
    PretrainedHeadError
        Where a weight is missing on one side or has another shape; then none is changed.
    """
    own = model.state_dict()
    asked = [
        name
        for name in own
        if not name.startswith("instance_classifier.") and (classifier or not name.startswith("classifier."))
    ]
    given = {
        name: value
        for name, value in head.weights.items()
        if classifier or not name.startswith("classifier.")
    }
    faults = [f"{name} isn't in it" for name in asked if name not in given]
    faults += [f"{name} has no place here" for name in given if name not in own]
    faults += [
        f"{name} is {_shape(given[name])}, here {_shape(own[name])}"
        for name in asked
        if name in given and given[name].shape != own[name].shape
    ]
    if faults:
        spec = head.spec
        raise PretrainedHeadError(
            f"{head.path} doesn't fit this head: {'; '.join(faults[:6])}. It fits embed_dim {spec.embed_dim}, "
            f"projection {list(spec.projection)}, hidden_dim {spec.hidden_dim}, gated {str(spec.gated).lower()}, "
            f"normalise {str(spec.normalise).lower()}"
        )
    with torch.no_grad():
        for name in asked:
            own[name].copy_(given[name])
    return [name for name in own if name not in asked]


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape))
