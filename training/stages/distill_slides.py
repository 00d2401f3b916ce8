"""Step 5, stage 2: what the teacher says of a slide's bag, as losses of the student's head.

L2 = l_ce CE + l_bag KL + l_soft KL + l_hard (CE of instances + ranking of the attention), or l_ce CE + other objectives.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from napari_lrmil.model.mil import MILModel, MILOutput
from training.data.bags import SlideBag, parents_in_bag
from training.data.tile_index import SlideTiles
from training.losses import guided_attention
from training.objectives import AnyBagObjective, BagObjective, SeenBag, TeacherBag
from training.objectives.base import BagShapes
from training.objectives.lrmil import LRMILBag, LRMILBagSpec
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
    """Slide-level distillation: L2 = l_ce CE + l_bag KL + l_soft KL + l_hard (CE of instances + ranking), or other objectives."""

    objectives: tuple[AnyBagObjective, ...] = Field(
        default=(),
        max_length=20,
        exclude_if=lambda value: not value,  # what is made without them keeps its key
        description="what a head learns beside the label, [[stage2.objectives]] with name = lrmil, kd, hints, nkd or uskd "
        "(docs/objectives.md), their terms added; default: lrmil, by the weights here",
    )

    gate: Literal["better", "off"] = Field(
        default="better",
        exclude_if=lambda value: value == "better",  # as above
        description="better: in folds where the teacher isn't shown to be better than LR from scratch on validation slides (AUC, "
        "paired, 95 % over patients and trainings) heads learn from the label alone; off: they always listen to it",
    )

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


def bag_specs(section: Stage2Section) -> tuple[AnyBagObjective, ...]:
    """Return the objectives of stage 2."""
    return section.objectives or (LRMILBagSpec(name="lrmil"),)


def left_out(section: Stage2Section, *, teacher: Lacks, student: Lacks) -> tuple[str, ...]:
    """Return the terms of L2 that two heads leave without meaning, of those that a weight above 0 asks for."""
    found: list[str] = []
    if not any(isinstance(spec, LRMILBagSpec) for spec in bag_specs(section)):
        return ()
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
    on_lr_tiles : bool
        Whether the student's instances are LR tiles, onto which the teacher's attention can be gathered.
    embeddings : mapping of str to (H,) tensor, optional
        The teacher's bag embeddings, where an objective asks for them.
    class_shares : sequence of float
        Share of each class among the slides.
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
        on_lr_tiles: bool = True,
        embeddings: Mapping[str, Tensor] | None = None,
        class_shares: Sequence[float] = (),
        student: Lacks | None = None,
    ) -> None:
        self._section, self._class_shares = section, tuple(class_shares)
        self._classifies = student is None or not student.instances
        self._teacher: dict[str, TeacherBag] = {}
        for tiles in slides:
            name = tiles.row.slide_id
            guided = has_children = None
            scores = teacher[name].attention_scores
            if on_lr_tiles and scores is not None:
                parent = torch.from_numpy(parents_in_bag(tiles, ratio))
                gathered, children = guided_attention(
                    scores, parent, len(tiles.lr_places), section.aggregation
                )
                guided, has_children = gathered.to(device), children.to(device)
            # A tensor of its own: one that was made for inference can't be part of a loss.
            embedding = None if embeddings is None else embeddings[name].to(device).clone()
            logits = teacher[name].bag_logits.to(device)
            self._teacher[name] = TeacherBag(logits, guided, has_children, embedding)
        self._teacher_bag_dim = None
        if embeddings:
            self._teacher_bag_dim = next(iter(embeddings.values())).shape[-1]
        self._objectives: list[BagObjective] = []
        self._trained = any(not isinstance(spec, LRMILBagSpec) for spec in bag_specs(section))
        if not self._trained:
            self._objectives = [self._lrmil(spec) for spec in bag_specs(section)]

    def _lrmil(self, spec: AnyBagObjective) -> LRMILBag:
        return LRMILBag(self._section, spec.weight, instances=self._classifies)

    def begin(self, head: MILModel, embed_dim: int, n_classes: int) -> nn.Module | None:
        """Make the objectives anew for a head that is trained from its start, and return their trained parameters, if any.

        Parameters
        ----------
        head : MILModel
        embed_dim, n_classes : int

        Raises
        ------
        ConfigError
            Where teacher or student hasn't got what an objective needs.
        """
        if not self._trained:
            return None
        shapes = BagShapes.of_head(
            head,
            embed_dim=embed_dim,
            n_classes=n_classes,
            teacher_bag_dim=self._teacher_bag_dim,
            class_shares=self._class_shares,
        )
        self._objectives = [
            self._lrmil(spec) if isinstance(spec, LRMILBagSpec) else spec.build(shapes)
            for spec in bag_specs(self._section)
        ]
        return nn.ModuleList(self._objectives)

    def __call__(self, bag: SlideBag, output: MILOutput) -> dict[str, Tensor]:
        """Return the weighted terms of one bag, of all objectives; after `begin` where they have parameters."""
        seen = SeenBag(
            output,
            bag.instance_embeddings.to(output.bag_logits.device),
            bag.label,
            self._teacher[bag.name],
        )
        terms: dict[str, Tensor] = {}
        for objective in self._objectives:
            terms |= objective(seen)
        return terms
