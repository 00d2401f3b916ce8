"""Step 5, stage 2: what the teacher says of a slide's bag, as losses of the student's head.

L2 = l_ce CE + l_bag KL + l_soft KL + l_hard (CE of instances + ranking of the attention). CONTRIBUTING.md says what a
term more takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from napari_lrmil.model.mil import MILOutput
from training.data.bags import SlideBag, parents_in_bag
from training.data.tile_index import SlideTiles
from training.losses import (
    attention_kl,
    bag_kl,
    guided_attention,
    hard_attention_loss,
    hard_instance_loss,
)
from training.section import Section
from training.stages.heads import Lacks, MILSection, lacks


class TeacherOutput(NamedTuple):
    """What the teacher's head says of one training slide of M HR tiles, C classes."""

    bag_logits: Tensor
    """(C,)"""
    attention_logits: Tensor | None
    """(M,) before the softmax over the bag, of the slide's class; None where the head has no attention"""
    attention_scores: Tensor | None
    """(M,) after it"""

    @classmethod
    def of(cls, output: MILOutput, label: int) -> TeacherOutput:
        """Return what a head's output says of a slide of class `label`."""
        return cls(output.bag_logits, output.attention_logits_for(label), output.attention_for(label))


class Stage2Section(Section):
    """Slide-level distillation: L2 = l_ce CE + l_bag KL + l_soft KL + l_hard (CE of instances + ranking)."""

    l_ce: float = Field(default=1.0, ge=0, description="of the cross-entropy with the label")
    l_bag: float = Field(default=1.0, ge=0, description="weight of the KL to the teacher's bag logits")
    l_soft: float = Field(
        default=0.5, ge=0, description="weight of the KL to the teacher's attention, summed over the bag"
    )
    l_hard: float = Field(
        default=0.5,
        ge=0,
        description="weight of the loss on the tiles that it attends to most and least, see stage2.hard",
    )
    hard: Literal["instances", "attention", "both"] = Field(
        default="both",
        description="what l_hard trains. instances: the instance classifier, by cross-entropy, which moves the attention "
        "only through mil.projection, and not by itself towards these tiles; attention: its logits, to rank them so",
    )
    temperature_bag: float = Field(default=2.0, gt=0, description="T_b, of both sides' bag logits")
    temperature_attention: float = Field(
        default=1.0, gt=0, description="T_a, of the student's attention logits"
    )
    aggregation: Literal["mean", "max", "sum"] = Field(
        default="sum", description="how the children's attention becomes that of the LR tile"
    )
    k: int = Field(default=4, ge=1, description="tiles at each end in the hard losses")


def left_out(section: Stage2Section, *, teacher: Lacks, student: Lacks) -> tuple[str, ...]:
    """Return the terms of L2 that two heads leave without meaning, of those that a weight above 0 asks for."""
    found = []
    if section.l_soft and (teacher.attention or student.attention):
        found.append("l_soft")
    if section.l_hard:
        parts = {"instances": student.instances, "attention": student.attention}
        wanted = parts if section.hard == "both" else {section.hard: parts[section.hard]}
        missing = [f"l_hard's {name}" for name, lacking in wanted.items() if lacking]
        if teacher.attention or len(missing) == len(wanted):
            missing = ["l_hard"]
        found += missing
    return tuple(found)


def left_out_note(section: Stage2Section, teacher: MILSection, student: MILSection) -> str:
    """Say which terms of L2 are left out since a head lacks what they compare; empty where none is."""
    of_teacher, of_student = lacks(teacher), lacks(student)
    terms = left_out(section, teacher=of_teacher, student=of_student)
    if not terms:
        return ""
    reasons = []
    if of_teacher.attention:
        reasons.append(f"the teacher's head ({teacher.name}) has no attention")
    if of_student.attention:
        reasons.append(f"its own head ({student.name}) has no attention")
    if of_student.instances and not of_teacher.attention:
        reasons.append(f"its own head ({student.name}) doesn't classify tiles as deciding or not")
    return f"stage 2 without {', '.join(terms)}: {'; '.join(reasons)}"


class SlideDistillation:
    """The teacher's part of L2 for each training slide; an `ExtraLoss` of `fit_head`.

    Parameters
    ----------
    section : Stage2Section
    slides : iterable of SlideTiles
        The training slides.
    teacher : mapping of str to TeacherOutput
        By slide.
    ratio : int
        LR tiles are so many HR tiles wide.
    device : torch.device
    student : Lacks, optional
        What the student's head doesn't say; its terms are left out, as those of an attention that the teacher lacks.
        Default: nothing.
    """

    def __init__(
        self,
        section: Stage2Section,
        slides: Iterable[SlideTiles],
        teacher: Mapping[str, TeacherOutput],
        *,
        ratio: int,
        device: torch.device,
        student: Lacks | None = None,
    ) -> None:
        self._section, self._student = section, student
        self._logits: dict[str, Tensor] = {}
        self._guided: dict[str, tuple[Tensor, Tensor]] = {}
        for tiles in slides:
            name = tiles.row.slide_id
            self._logits[name] = teacher[name].bag_logits.to(device)
            scores = teacher[name].attention_scores
            if scores is None:
                continue
            parent = torch.from_numpy(parents_in_bag(tiles, ratio))
            guided, has_children = guided_attention(scores, parent, len(tiles.lr_places), section.aggregation)
            self._guided[name] = (guided.to(device), has_children.to(device))

    def __call__(self, bag: SlideBag, output: MILOutput) -> dict[str, Tensor]:
        """Return the weighted terms of one bag, by `TEACHER_TERMS`; without those of an attention that a head lacks."""
        section = self._section
        terms = {
            "bag": section.l_bag * bag_kl(output.bag_logits, self._logits[bag.name], section.temperature_bag)
        }
        if bag.name not in self._guided:
            return terms
        guided, has_children = self._guided[bag.name]
        attention_logits = output.attention_logits_for(bag.label)
        if attention_logits is not None:
            terms["soft"] = section.l_soft * attention_kl(
                attention_logits, guided, has_children, section.temperature_attention
            )
        instance_logits = (
            None if self._student is not None and self._student.instances else output.instance_logits
        )
        hard = self._hard(attention_logits, instance_logits, guided, has_children)
        return terms if hard is None else terms | {"hard": section.l_hard * hard}

    def _hard(
        self,
        attention_logits: Tensor | None,
        instance_logits: Tensor | None,
        guided: Tensor,
        has_children: Tensor,
    ) -> Tensor | None:
        hard, k = self._section.hard, self._section.k
        losses = []
        if hard != "attention" and instance_logits is not None:
            losses.append(hard_instance_loss(instance_logits, guided, has_children, k))
        if hard != "instances" and attention_logits is not None:
            losses.append(hard_attention_loss(attention_logits, guided, has_children, k))
        return torch.stack(losses).sum() if losses else None
