"""Train one MIL head on bags, one bag a step: the teacher's and every student's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from napari_lrmil.model.mil import MILModel, MILOutput, MILSpec, build_mil
from training.config import MILSection
from training.data.bags import Bag
from training.loop import fit
from training.metrics import auc
from training.progress import Reporter


def fit_mil(
    train: list[Bag],
    val: list[Bag],
    *,
    n_classes: int,
    config: MILSection,
    extra_loss: Callable[[Bag, MILOutput], dict[str, Tensor]] | None,
    ce_weight: float = 1.0,
    seed: int,
    device: torch.device,
    metrics_csv: Path,
    reporter: Reporter,
    description: str,
) -> MILModel:
    """A fresh head trained on `train`, stopped on the AUC of `val` (of equal ones the smaller loss).

    Parameters
    ----------
    train, val : list of Bag
    n_classes : int
    config : MILSection
    extra_loss : callable, optional
        Bag and output -> named losses, already weighted, that are added to the cross-entropy.
    ce_weight : float
        Of the cross-entropy with the label.
    seed : int
        Of weights, order and dropout: the same seed gives the same head on the same machine.
    device, metrics_csv, reporter, description
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = build_mil(mil_spec(train[0].instance_embeddings.shape[1], n_classes, config)).to(device)

    def batches(epoch: int) -> Iterator[Bag]:
        for index in rng.permutation(len(train)):
            bag = train[index]
            yield bag._replace(instance_embeddings=bag.instance_embeddings.to(device))

    def loss_of(bag: Bag) -> dict[str, Tensor]:
        output = model(bag.instance_embeddings)
        losses = {
            "ce": ce_weight
            * F.cross_entropy(output.bag_logits[None], torch.tensor([bag.label], device=device))
        }
        if extra_loss is not None:
            losses |= extra_loss(bag, output)
        return {"loss": torch.stack(list(losses.values())).sum()} | losses

    labels = np.asarray([bag.label for bag in val], np.int64)

    def validate() -> dict[str, float]:
        logits = torch.from_numpy(bag_logits(model, val, device))
        loss = float(F.cross_entropy(logits, torch.from_numpy(labels)))
        return {"val_auc": auc(labels, torch.softmax(logits, dim=1).numpy()), "val_loss": loss}

    fit(
        model,
        epochs=config.epochs,
        batches=batches,
        steps_per_epoch=len(train),
        loss_of=loss_of,
        validate=validate,
        score=lambda metrics: (round(metrics["val_auc"], 6), -metrics["val_loss"]),
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        patience=config.patience,
        metrics_csv=metrics_csv,
        reporter=reporter,
        description=description,
    )
    return model


def mil_spec(embed_dim: int, n_classes: int, config: MILSection) -> MILSpec:
    """The head that `config` asks for."""
    return MILSpec(
        embed_dim=embed_dim,
        n_classes=n_classes,
        hidden_dim=config.hidden_dim,
        gated=config.gated,
        dropout=config.dropout,
    )


def bag_outputs(model: MILModel, bags: list[Bag], device: torch.device) -> Iterator[MILOutput]:
    """The model's outputs bag by bag, on the CPU, without gradients."""
    model.eval()
    with torch.inference_mode():
        for bag in bags:
            yield MILOutput(*(value.float().cpu() for value in model(bag.instance_embeddings.to(device))))


def bag_logits(model: MILModel, bags: list[Bag], device: torch.device) -> NDArray[np.float64]:
    """(number of bags, C)"""
    return np.stack([output.bag_logits.double().numpy() for output in bag_outputs(model, bags, device)])
