"""Train one MIL head on bags, one bag a step: the teacher's and every student's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from napari_lrmil.model.mil import MILModel, MILOutput, MILSpec, build_mil
from training.checkpoint import Files
from training.config import MILSection
from training.data.bags import Bag, Bags
from training.loop import fit
from training.metrics import auc
from training.progress import Reporter


def fit_mil(
    train: Bags,
    val: Bags,
    *,
    embed_dim: int,
    n_classes: int,
    config: MILSection,
    extra_loss: Callable[[Bag, MILOutput], dict[str, Tensor]] | None,
    ce_weight: float = 1.0,
    seed: int,
    fabric: Fabric,
    files: Files,
    reporter: Reporter,
    description: str,
) -> MILModel:
    """A fresh head trained on `train`, stopped on the AUC of `val` (of equal ones the smaller loss).

    Parameters
    ----------
    train, val : Bags
    embed_dim : int
        D
    n_classes : int
    config : MILSection
    extra_loss : callable, optional
        Bag and output -> named losses, already weighted, that are added to the cross-entropy.
    ce_weight : float
        Of the cross-entropy with the label.
    seed : int
        Of weights, order and dropout: the same seed gives the same head on the same machine.
    fabric, files, reporter, description
        See `fit`.
    """
    device = fabric.device
    torch.manual_seed(seed)
    model = build_mil(mil_spec(embed_dim, n_classes, config)).to(device)

    def batches(epoch: int) -> Iterator[Bag]:
        order = np.random.default_rng((seed, epoch)).permutation(len(train))
        return train.in_order(order.tolist())

    def loss_of(wrapped: nn.Module, bag: Bag) -> dict[str, Tensor]:
        output = MILOutput(*wrapped(bag.instance_embeddings.to(device)))
        losses = {
            "ce": ce_weight
            * F.cross_entropy(output.bag_logits[None], torch.tensor([bag.label], device=device))
        }
        if extra_loss is not None:
            losses |= extra_loss(bag, output)
        return {"loss": torch.stack(list(losses.values())).sum()} | losses

    def validate() -> dict[str, float]:
        logits = torch.from_numpy(bag_logits(model, val, device))
        loss = float(F.cross_entropy(logits, torch.from_numpy(val.labels)))
        return {"val_auc": auc(val.labels, torch.softmax(logits, dim=1).numpy()), "val_loss": loss}

    fit(
        model,
        fabric=fabric,
        epochs=config.epochs,
        batches=batches,
        steps_per_epoch=len(train),
        loss_of=loss_of,
        names_of=lambda bag, losses: bag.name,
        validate=validate,
        score=lambda metrics: (round(metrics["val_auc"], 6), -metrics["val_loss"]),
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        seed=seed,
        accumulate=config.accumulate,
        patience=config.patience,
        files=files,
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


def bag_outputs(model: MILModel, bags: Iterable[Bag], device: torch.device) -> Iterator[MILOutput]:
    """The model's outputs bag by bag, on the CPU, without gradients."""
    model.eval()
    with torch.inference_mode():
        for bag in bags:
            yield MILOutput(*(value.float().cpu() for value in model(bag.instance_embeddings.to(device))))


def bag_logits(model: MILModel, bags: Iterable[Bag], device: torch.device) -> NDArray[np.float64]:
    """(number of bags, C)"""
    return np.stack([output.bag_logits.double().numpy() for output in bag_outputs(model, bags, device)])
