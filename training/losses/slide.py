"""Stage 2: a student's bag against the teacher's (step 5 of `training.stages`)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def bag_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(softmax(teacher / T) || softmax(student / T)), both (C,)."""
    student = torch.log_softmax(student_logits / temperature, dim=-1)
    teacher = torch.log_softmax(teacher_logits / temperature, dim=-1)
    return temperature**2 * F.kl_div(student, teacher, reduction="sum", log_target=True)


def guided_attention(hr_scores: Tensor, parent: Tensor, n_lr: int, aggregation: str) -> tuple[Tensor, Tensor]:
    """Return the teacher's attention gathered onto LR tiles, as one distribution over the bag.

    Parameters
    ----------
    hr_scores : (M,) tensor
        Attention scores of the HR tiles.
    parent : (M,) int64 tensor
        LR tile (0..n_lr-1) that each HR tile lies in; -1 where that one isn't in the bag.
    n_lr : int
    aggregation : {"mean", "max", "sum"}

    Returns
    -------
    guided : (n_lr,) tensor
        Sums to 1; 0 on tiles without children.
    has_children : (n_lr,) bool tensor
    """
    inside = parent >= 0
    scores, index = hr_scores[inside], parent[inside]
    has_children = torch.zeros(n_lr, dtype=torch.bool, device=hr_scores.device)
    has_children[index] = True
    reduce = {"mean": "mean", "max": "amax", "sum": "sum"}[aggregation]
    gathered = torch.zeros(n_lr, dtype=hr_scores.dtype, device=hr_scores.device).scatter_reduce(
        0, index, scores, reduce=reduce, include_self=False
    )
    total = gathered.sum()
    if not bool(has_children.any()):
        return gathered, has_children
    uniform = has_children.to(gathered.dtype) / has_children.sum()
    return torch.where(
        total > 0, gathered / total.clamp_min(torch.finfo(total.dtype).tiny), uniform
    ), has_children


def attention_kl(student_logits: Tensor, guided: Tensor, has_children: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(guided || softmax(student / T)) summed over the bag: it must not shrink with the bag.

    Parameters
    ----------
    student_logits : (N,) tensor
        Attention logits of the student.
    guided, has_children : (N,) tensors
        See `guided_attention`; the student's softmax runs over tiles with children only.
    temperature : float

    Returns
    -------
    scalar tensor
    """
    if not bool(has_children.any()):
        return student_logits.sum() * 0
    log_student = torch.log_softmax(student_logits[has_children] / temperature, dim=0)
    target = guided[has_children]
    return temperature**2 * F.kl_div(log_student, target, reduction="sum")


def hard_instance_loss(instance_logits: Tensor, guided: Tensor, has_children: Tensor, k: int) -> Tensor:
    """Return the cross-entropy of the instance classifier: top-k guided tiles are 1, bottom-k are 0.

    In a bag of fewer than 2 k tiles with children the ends shrink so that they never overlap. Where instances aren't
    trained, it reaches nothing but the instance classifier itself.

    Parameters
    ----------
    instance_logits : (N, 2) tensor
    guided, has_children : (N,) tensors
    k : int

    Returns
    -------
    scalar tensor
    """
    top, bottom = _ends(guided, has_children, k)
    if len(top) == 0:
        return instance_logits.sum() * 0
    target = torch.cat([torch.ones_like(top), torch.zeros_like(bottom)])
    return F.cross_entropy(instance_logits[torch.cat([top, bottom])], target)


def hard_attention_loss(attention_logits: Tensor, guided: Tensor, has_children: Tensor, k: int) -> Tensor:
    """Return how far the student's attention is from ranking top-k guided tiles above bottom-k.

    The mean of log(1 + exp(a_bottom - a_top)) over the k x k pairs: like the attention itself, it doesn't see what is
    added to all logits of a bag.

    Parameters
    ----------
    attention_logits : (N,) tensor
        Of the student, before the softmax.
    guided, has_children : (N,) tensors
    k : int
        As in `hard_instance_loss`.

    Returns
    -------
    scalar tensor
    """
    top, bottom = _ends(guided, has_children, k)
    if len(top) == 0:
        return attention_logits.sum() * 0
    return F.softplus(attention_logits[bottom][None, :] - attention_logits[top][:, None]).mean()


def _ends(guided: Tensor, has_children: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the places of the top-k and the bottom-k guided tiles, fewer in a small bag."""
    places = has_children.nonzero().squeeze(1)
    k = min(k, len(places) // 2)
    order = places[guided[places].argsort(descending=True, stable=True)]
    return order[:k], order[len(order) - k :]
