"""CLAM, clustering-constrained attention MIL (Lu et al., Nature Biomedical Engineering 2021, arXiv 2004.09666).

Gated attention, of one branch (SB) or of one a class (MB), pools instances that a trained layer has projected. In
training each class has an instance classifier: the k tiles that the attention of the slide's class ranks highest are
its positives, the k lowest its negatives, and with `subtyping`, where classes exclude each other, the highest k of
every other class are negatives of that one. The loss is 0.7 cross-entropy of the bag + 0.3 of the instances.

Beside the paper: embeddings may be normalised first, as in all heads here, and in a bag of fewer than 2 k tiles the
two ends shrink so that no tile is both (the authors' code fails below k).
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from napari_lrmil.model.mil.attention import (
    GatedAttention,
    NormalisedSpec,
    input_norm,
    pooled_without_each,
    xavier_init,
)
from napari_lrmil.model.mil.base import AnyBag, MILModel, MILOutput, bag_cross_entropy, one_bag

InstanceLoss = Literal["svm", "ce"]


class InstanceLossSpec(NormalisedSpec):
    """Numbers of a gated attention on projected instances, trained with CLAM's instance loss too."""

    projection_dim: int = Field(
        default=512, gt=0, le=8192, description="width of the layer before the attention"
    )
    hidden_dim: int = Field(default=256, gt=0, le=8192, description="width of the attention's hidden layer")
    dropout: float = Field(default=0.25, ge=0, lt=1, description="after each hidden layer, in training only")
    k: int = Field(
        default=8, ge=1, le=4096, description="tiles at each end of the attention for the instance loss"
    )
    subtyping: bool = Field(
        default=False, description="classes exclude each other: also the others' top k, as negatives"
    )
    instance_loss: InstanceLoss = Field(default="svm", description="svm: smooth top-1 SVM; ce: cross-entropy")


class _CLAMSpec(InstanceLossSpec):
    bag_weight: float = Field(
        default=0.7, ge=0, le=1, description="of the bag's loss; the instances' has the rest"
    )


class CLAMSBSpec(_CLAMSpec):
    """Everything needed to build a CLAM of one attention branch, weights apart."""

    name: Literal["clam_sb"] = "clam_sb"

    def build(self) -> CLAM:
        """Return the head with fresh weights."""
        return CLAM(self, n_branches=1)


class CLAMMBSpec(_CLAMSpec):
    """Everything needed to build a CLAM of one attention branch a class, weights apart."""

    name: Literal["clam_mb"] = "clam_mb"

    def build(self) -> CLAM:
        """Return the head with fresh weights."""
        return CLAM(self, n_branches=self.n_classes)


class CLAM(MILModel):
    """Attention of one branch or of one a class, with instance classifiers; see the module.

    Parameters
    ----------
    spec : CLAMSBSpec or CLAMMBSpec
    n_branches : int
        1, or as many as classes.
    """

    def __init__(self, spec: _CLAMSpec, *, n_branches: int) -> None:
        super().__init__()
        self.spec = spec
        self.norm = input_norm(spec.embed_dim, spec.normalise)
        self.projection = nn.Sequential(
            nn.Linear(spec.embed_dim, spec.projection_dim), nn.ReLU(), nn.Dropout(spec.dropout)
        )
        self.attention = GatedAttention(
            spec.projection_dim, spec.hidden_dim, n_branches=n_branches, dropout=spec.dropout
        )
        self.classifier = nn.Linear(spec.projection_dim, spec.n_classes)
        self.instance_classifiers = nn.Linear(spec.projection_dim, 2 * spec.n_classes)
        xavier_init(self)

    def forward(self, bag: AnyBag) -> MILOutput:
        """Classify one bag.

        Parameters
        ----------
        bag : (N, D) tensor or Bag

        Returns
        -------
        MILOutput
            Attention (1, N) or (C, N). ``extras``: "class_instance_logits" (N, C) at prediction, log odds that a tile is one
            of the class; "end_logits" (C, 2 k, 2), each class's instance classifier on the k tiles that its attention ranks
            highest, then on the k lowest.
        """
        instances, attention_logits = self._attend(bag)
        embeddings = torch.softmax(attention_logits, dim=1) @ instances  # (A, P)
        # Of several branches class c reads the bag embedding of its own.
        bag_logits = (embeddings * self.classifier.weight).sum(dim=1) + self.classifier.bias  # (C,)
        ends = attention_ends(attention_logits, self.spec.k)  # (A, 2 k)
        # (A, 2 k, P) -> (A, 2 k, 2 C) -> (A, 2 k, C, 2) -> (C, 2 k, 2)
        of_ends = self.instance_classifiers(instances[ends]).unflatten(2, (-1, 2))
        end_logits = torch.stack(
            [of_ends[c if len(ends) > 1 else 0, :, c] for c in range(self.spec.n_classes)]
        )
        extras = {"end_logits": end_logits}
        if not self.training:
            by_class = self.instance_classifiers(instances).unflatten(1, (-1, 2))  # (N, 2 C) -> (N, C, 2)
            extras["class_instance_logits"] = by_class[..., 1] - by_class[..., 0]
        return MILOutput(
            bag_logits=bag_logits,
            attention_logits=attention_logits,
            bag_embedding=embeddings if len(embeddings) > 1 else embeddings[0],
            extras=extras,
        )

    def losses(
        self, output: MILOutput, label: int, *, class_weights: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return 0.7 cross-entropy of the bag as "ce" and 0.3 of the instances as "instance"."""
        weight = self.spec.bag_weight
        instance = clam_instance_loss(
            output.extras["end_logits"], label, kind=self.spec.instance_loss, subtyping=self.spec.subtyping
        )
        return {
            "ce": weight * bag_cross_entropy(output.bag_logits, label, class_weights),
            "instance": (1 - weight) * instance,
        }

    def leave_one_out_logits(self, bag: AnyBag) -> Tensor:
        """As in `MILModel`, in closed form."""
        instances, attention_logits = self._attend(bag)
        if len(instances) == 1:
            return instances.new_zeros((1, self.spec.n_classes))
        values = instances @ self.classifier.weight.T  # (N, C)
        return pooled_without_each(attention_logits, values) + self.classifier.bias

    def alone_logits(self, bag: AnyBag) -> Tensor:
        """As in `MILModel`, in closed form: an instance alone has all of the attention."""
        logits: Tensor = self.classifier(self._attend(bag)[0])
        return logits

    def _attend(self, bag: AnyBag) -> tuple[Tensor, Tensor]:
        """Projected instances (N, P) and their attention logits (A, N)."""
        instances = self.projection(self.norm(one_bag(bag).embeddings))
        return instances, self.attention(instances)


def attention_ends(attention_logits: Tensor, k: int) -> Tensor:
    """Return the (A, 2 k) indices of the k highest and then the k lowest of each row of (A, N); k at most N / 2."""
    k = min(k, attention_logits.shape[1] // 2)
    highest = attention_logits.topk(k, dim=1).indices
    lowest = attention_logits.topk(k, dim=1, largest=False).indices
    return torch.cat([highest, lowest], dim=1)


def clam_instance_loss(end_logits: Tensor, label: int, *, kind: InstanceLoss, subtyping: bool) -> Tensor:
    """Return CLAM's instance loss of one bag.

    Parameters
    ----------
    end_logits : (C, 2 k, 2) tensor
        Of each class's instance classifier: on the k tiles that its attention ranks highest, then on the k lowest.
    label : int
        Class of the bag.
    kind : {"svm", "ce"}
    subtyping : bool
        Whether the highest k of the other classes count as negatives of these; then the sum is divided by C.

    Returns
    -------
    scalar tensor
        0 in a bag of one tile.
    """
    n_classes, n_ends, _ = end_logits.shape
    k = n_ends // 2
    if k == 0:
        return end_logits.sum() * 0
    positive = torch.ones(k, dtype=torch.long, device=end_logits.device)
    negative = torch.zeros_like(positive)
    total = two_class_loss(end_logits[label], torch.cat([positive, negative]), kind)
    if subtyping:
        for other in range(n_classes):
            if other != label:
                total = total + two_class_loss(end_logits[other, :k], negative, kind)
        total = total / n_classes
    return total


def two_class_loss(logits: Tensor, target: Tensor, kind: InstanceLoss) -> Tensor:
    """Return the mean loss of (M, 2) logits for (M,) targets.

    The smooth SVM of Berrada, Zisserman & Kumar (ICLR 2018) with temperature and margin 1 is the cross-entropy of
    logits of which those of the wrong classes are larger by the margin.
    """
    if kind == "svm":
        logits = logits + 1.0 - F.one_hot(target, 2)
    return F.cross_entropy(logits, target)
