"""MIL heads: train one on bags, one bag a step, and ask one about bags. The teacher's and every student's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from napari_lrmil.model.bundle import stored_weights
from napari_lrmil.model.mil import MILModel, MILOutput, MILSpec, build_mil
from training.data.bags import Bag, Bags
from training.loop import Recipe, Session, Task, fit
from training.metrics import auc
from training.section import Section

ExtraLoss = Callable[[Bag, MILOutput], dict[str, Tensor]]
"""Bag and the head's output -> named losses, already weighted, that are added to the cross-entropy."""


class MILSection(Section):
    """ABMIL heads, teacher's and student's, and how they are trained."""

    hidden_dim: int = Field(default=128, gt=0, description="width of the attention's hidden layer")
    gated: bool = Field(default=True, description="attention times a sigmoid gate")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="on instances")
    epochs: int = Field(default=50, ge=1, description="at most")
    patience: int = Field(
        default=10, ge=1, description="epochs without a better validation AUC before stopping"
    )
    learning_rate: float = Field(default=2e-4, gt=0, description="of AdamW, constant")
    weight_decay: float = Field(default=1e-3, ge=0, description="of AdamW")
    accumulate: int = Field(default=1, ge=1, description="bags a step")

    def spec(self, embed_dim: int, n_classes: int) -> MILSpec:
        """Return what the model package builds the head from."""
        return MILSpec(
            embed_dim=embed_dim,
            n_classes=n_classes,
            hidden_dim=self.hidden_dim,
            gated=self.gated,
            dropout=self.dropout,
        )

    def recipe(self, seed: int) -> Recipe:
        """Return how its weights are fitted."""
        return Recipe(
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            seed=seed,
            accumulate=self.accumulate,
            patience=self.patience,
        )


def fit_head(
    train: Bags,
    val: Bags,
    spec: MILSpec,
    recipe: Recipe,
    session: Session,
    *,
    ce_weight: float = 1.0,
    extra_loss: ExtraLoss | None = None,
) -> MILModel:
    """Return a fresh head trained on `train`, stopped on the AUC of `val` (of equal ones the smaller loss).

    The same seed gives the same head on the same machine: of weights, order and dropout.

    Parameters
    ----------
    train, val : Bags
    spec : MILSpec
    recipe : Recipe
    session : Session
    ce_weight : float
        Of the cross-entropy with the label.
    extra_loss : callable, optional
        See `ExtraLoss`.
    """
    device = session.fabric.device
    torch.manual_seed(recipe.seed)
    model = build_mil(spec).to(device)

    def batches(epoch: int) -> Iterator[Bag]:
        order = np.random.default_rng((recipe.seed, epoch)).permutation(len(train))
        return train.in_order(order.tolist())

    def losses(wrapped: nn.Module, bag: Bag) -> dict[str, Tensor]:
        output = MILOutput(*wrapped(bag.instance_embeddings.to(device)))
        label = torch.tensor([bag.label], device=device)
        terms = {"ce": ce_weight * F.cross_entropy(output.bag_logits[None], label)}
        if extra_loss is not None:
            terms |= extra_loss(bag, output)
        return {"loss": torch.stack(list(terms.values())).sum()} | terms

    def validate() -> dict[str, float]:
        logits = torch.from_numpy(bag_logits(model, val, device))
        loss = float(F.cross_entropy(logits, torch.from_numpy(val.labels)))
        return {"val_auc": auc(val.labels, torch.softmax(logits, dim=1).numpy()), "val_loss": loss}

    task = Task(
        batches=batches,
        steps_per_epoch=len(train),
        losses=losses,
        validate=validate,
        score=lambda metrics: (round(metrics["val_auc"], 6), -metrics["val_loss"]),
        names=lambda bag, losses: bag.name,
    )
    fit(model, task, recipe, session)
    model.load_state_dict(
        stored_weights(model.state_dict())
    )  # rounded: what is evaluated is what a bundle serves
    return model


def bag_outputs(model: MILModel, bags: Iterable[Bag], device: torch.device) -> Iterator[MILOutput]:
    """Yield the model's outputs bag by bag, on the CPU, without gradients."""
    model.eval()
    with torch.inference_mode():
        for bag in bags:
            yield MILOutput(*(value.float().cpu() for value in model(bag.instance_embeddings.to(device))))


def bag_logits(model: MILModel, bags: Iterable[Bag], device: torch.device) -> NDArray[np.float64]:
    """Return the bag logits, (number of bags, C)."""
    return np.stack([output.bag_logits.double().numpy() for output in bag_outputs(model, bags, device)])
