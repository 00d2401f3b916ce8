"""What every aggregator takes and returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Bag:
    """The instances of one slide at one magnification, N of them.

    Attributes
    ----------
    embeddings : (N, D) tensor
    places : (N, 2) int64 tensor, optional
        x, y of each tile on the grid of its magnification, in tiles.
    mpp : float, optional
        µm per pixel of the tiles.
    parents : (N,) int64 tensor, optional
        Of several magnifications: index of the tile in the next coarser bag that this one lies in; -1 for none.
    """

    embeddings: Tensor
    places: Tensor | None = None
    mpp: float | None = None
    parents: Tensor | None = None

    @classmethod
    def of(cls, bag: Tensor | Bag) -> Bag:
        """Return a bag as it is, and embeddings alone as a bag."""
        return bag if isinstance(bag, Bag) else cls(bag)

    def __len__(self) -> int:
        return len(self.embeddings)

    def on(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Bag:
        """Return the bag on a device, its embeddings as `dtype`."""
        places, parents = self.places, self.parents
        return replace(
            self,
            embeddings=self.embeddings.to(device, dtype),
            places=None if places is None else places.to(device),
            parents=None if parents is None else parents.to(device),
        )

    def part(self, kept: Tensor) -> Bag:
        """Return the bag of some instances, by (N,) bool mask or by indices."""
        places, parents = self.places, self.parents
        return replace(
            self,
            embeddings=self.embeddings[kept],
            places=None if places is None else places[kept],
            parents=None if parents is None else parents[kept],
        )


_MASKS_AT_ONCE = 2**24
"""Numbers of bool masks that are made together."""
AnyBag = Tensor | Bag | tuple[Bag, ...]
"""What a head is asked about: embeddings (N, D) alone, a bag, or a bag a magnification, the coarsest first."""


def one_bag(bag: AnyBag) -> Bag:
    """Return the bag of a head that reads one magnification.

    Raises
    ------
    ValueError
        Of several magnifications.
    """
    if isinstance(bag, tuple):
        if len(bag) != 1:
            raise ValueError(f"bags of {len(bag)} magnifications for a head that reads one")
        return bag[0]
    return Bag.of(bag)


def finest_bag(bag: AnyBag) -> Bag:
    """Return the only bag, or the finest of several."""
    return bag[-1] if isinstance(bag, tuple) else Bag.of(bag)


def with_part(bag: AnyBag, kept: Tensor) -> AnyBag:
    """Return the bag of some instances, by mask or by indices; of several magnifications, of some of the finest."""
    if isinstance(bag, tuple):
        return (*bag[:-1], bag[-1].part(kept))
    return Bag.of(bag).part(kept)


@dataclass(frozen=True)
class MILOutput:
    """What an aggregator says of one bag of N instances, C classes; read it by name.

    Of several magnifications, attention and instance logits are of the finest bag.
    """

    bag_logits: Tensor
    """(C,)"""
    attention_logits: Tensor | None = None
    """(A, N) before the softmax over the bag, any sign; A = 1, or C where each class has its own. None: no attention."""
    instance_logits: Tensor | None = None
    """(N, 2): is this one of the tiles that decide? Column 1 says yes; or (N, C), of each class. None: not said."""
    bag_embedding: Tensor | None = None
    """(H,), or (C, H) where each class has its own"""
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    """What else the head's own loss needs, by name."""

    @property
    def attention_scores(self) -> Tensor | None:
        """(A, N) after the softmax over the bag; each row sums to 1."""
        return None if self.attention_logits is None else torch.softmax(self.attention_logits, dim=-1)

    def attention_for(self, class_index: int) -> Tensor | None:
        """Return the (N,) attention scores of a class: of all classes alike where A = 1."""
        logits = self.attention_logits_for(class_index)
        return None if logits is None else torch.softmax(logits, dim=0)

    def attention_logits_for(self, class_index: int) -> Tensor | None:
        """Return the (N,) attention logits of a class: of all classes alike where A = 1."""
        logits = self.attention_logits
        if logits is None:
            return None
        return logits[class_index if len(logits) > 1 else 0]

    def tensors(self) -> dict[str, Tensor]:
        """Return all of its tensors by name, those of `extras` as ``extras.<name>``; `of_tensors` takes them back.

        Wrappers for mixed precision and for several processes look into mappings, and refuse frozen dataclasses.
        """
        named = {
            "bag_logits": self.bag_logits,
            "attention_logits": self.attention_logits,
            "instance_logits": self.instance_logits,
            "bag_embedding": self.bag_embedding,
        }
        found = {name: value for name, value in named.items() if value is not None}
        return found | {f"extras.{name}": value for name, value in self.extras.items()}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> MILOutput:
        """Return the output whose `tensors` these are."""
        extras = {
            name.removeprefix("extras."): value
            for name, value in tensors.items()
            if name.startswith("extras.")
        }
        return cls(
            bag_logits=tensors["bag_logits"],
            attention_logits=tensors.get("attention_logits"),
            instance_logits=tensors.get("instance_logits"),
            bag_embedding=tensors.get("bag_embedding"),
            extras=extras,
        )


def logits_of_parts(kept: Tensor, ask: Callable[[Tensor], Tensor]) -> Tensor:
    """Return what a head says of each part that holds any instance, asked one by one, (S, C); zeros for an empty part.

    Parameters
    ----------
    kept : (S, N) bool tensor
    ask : callable
        Takes the (N,) bool mask of a part, returns its (C,) bag logits.
    """
    holds_any = kept.any(dim=1)
    logits = [ask(part) for part in kept[holds_any]]
    like = logits[0] if logits else ask(kept.new_ones(kept.shape[1]))
    found = like.new_zeros((len(kept), len(like)))
    if logits:
        found[holds_any] = torch.stack(logits)
    return found


class MILModel(nn.Module):
    """Base of the aggregators: maps a bag to `MILOutput`.

    Attributes
    ----------
    magnifications : int
        How many it reads. With more than one it takes as many bags, the coarsest first.
    order_matters : bool
        Whether the order of the instances counts, beside their places.
    """

    magnifications: int = 1
    order_matters: bool = False

    def forward(self, bag: AnyBag) -> MILOutput:
        """See the subclass."""
        raise NotImplementedError

    def __call__(self, bag: AnyBag) -> MILOutput:  # the type of forward, kept
        output: MILOutput = super().__call__(bag)
        return output

    def children_to_read(self, read: Sequence[Bag]) -> Tensor:
        """Return whose children are read at the next magnification: of all tiles, but for heads that choose.

        Parameters
        ----------
        read : sequence of Bag
            What has been read, the coarsest first: at least one, and fewer than `magnifications`.

        Returns
        -------
        (k,) int64 tensor
            Indices of tiles in the last of them, in order.
        """
        last = read[-1].embeddings
        return torch.arange(len(last), device=last.device)

    def part_to_read(self, bag: AnyBag) -> AnyBag:
        """Return what prediction reads of a bag that holds all tiles: of finer magnifications, the children asked for.

        Parameters
        ----------
        bag : (N, D) tensor, Bag or tuple of Bag

        Returns
        -------
        as `bag`
            Parents are indices in what is read of the next coarser one.
        """
        if not isinstance(bag, tuple):
            return bag
        read = [bag[0]]
        # Index of each tile of the coarser bag among those that are read of it; -1 for the others.
        place = torch.arange(len(bag[0]), device=bag[0].embeddings.device)
        for finer in bag[1:]:
            assert finer.parents is not None
            parents = torch.where(finer.parents >= 0, place[finer.parents.clamp_min(0)], -1)
            kept = torch.isin(parents, self.children_to_read(read))
            read.append(replace(finer, parents=parents).part(kept))
            place = torch.where(kept, kept.cumsum(0) - 1, -1)
        return tuple(read)

    def losses(
        self, output: MILOutput, label: int, *, class_weights: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the head's own training loss of one bag by term, each weighted as its paper has it.

        This one is the cross-entropy of the bag, "ce"; a head with more terms adds its own.

        Parameters
        ----------
        output : MILOutput
            Of this head, in training mode.
        label : int
        class_weights : (C,) tensor, optional
            How much a bag of each class counts.
        """
        return {"ce": bag_cross_entropy(output.bag_logits, label, class_weights)}

    def subset_logits(self, bag: AnyBag, kept: Tensor) -> Tensor:
        """Bag logits of parts of one bag, each as if it were the whole bag.

        This one reruns the head on every part, which is exact for any head; a subclass may have a shorter way to
        the same numbers.

        Parameters
        ----------
        bag : (N, D) tensor, Bag or tuple of Bag
        kept : (S, N) bool tensor
            The instances of each part; of several magnifications those of the finest bag, the coarser staying as they are.

        Returns
        -------
        (S, C) tensor
            Zeros for an empty part: every class is equally likely.
        """
        return logits_of_parts(kept, lambda part: self(with_part(bag, part)).bag_logits)

    def leave_one_out_logits(self, bag: AnyBag) -> Tensor:
        """Bag logits of the bag without each of its instances.

        Parameters
        ----------
        bag : (N, D) tensor or Bag

        Returns
        -------
        (N, C) tensor
            Row n: without instance n. Zeros for N = 1, as in `subset_logits`.
        """
        n = len(finest_bag(bag))
        indices = torch.arange(n, device=finest_bag(bag).embeddings.device)
        # So many parts at a time that their masks stay small: all of them would be N x N.
        some = torch.split(indices, max(1, _MASKS_AT_ONCE // n))
        return torch.cat([self.subset_logits(bag, indices != left_out[:, None]) for left_out in some])

    def alone_logits(self, bag: AnyBag) -> Tensor:
        """Bag logits of the bags that hold one instance each.

        Parameters
        ----------
        bag : (N, D) tensor or Bag

        Returns
        -------
        (N, C) tensor
            Row n: of instance n alone.
        """
        whole = finest_bag(bag)
        indices = torch.arange(len(whole), device=whole.embeddings.device)
        return torch.stack([self(with_part(bag, index)).bag_logits for index in indices[:, None]])


def bag_cross_entropy(bag_logits: Tensor, label: int, class_weights: Tensor | None = None) -> Tensor:
    """Return the cross-entropy of one bag, times the weight of its class where there are weights.

    `torch`'s own weights would cancel: of one bag it divides by their sum.

    Parameters
    ----------
    bag_logits : (C,) tensor
    label : int
    class_weights : (C,) tensor, optional
    """
    loss = F.cross_entropy(bag_logits[None], torch.tensor([label], device=bag_logits.device))
    return loss if class_weights is None else float(class_weights[label]) * loss


class MILSpec(BaseModel):
    """Everything needed to build an aggregator, weights apart: base of one spec a head, told apart by `name`.

    A subclass has ``name: Literal["..."] = "..."``, its own keys with their defaults, and `build`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    has_attention: ClassVar[bool] = True
    """Whether the head's output has `MILOutput.attention_logits`."""
    tells_deciding_tiles: ClassVar[bool] = False
    """Whether its output says of each instance whether it is one of those that decide: `MILOutput.instance_logits` (N, 2)
    of a classifier of that, and not of the slide's classes."""

    name: str
    embed_dim: int = Field(gt=0, le=65_536)
    n_classes: int = Field(ge=2, le=1000)

    @property
    def factors(self) -> tuple[int, ...]:
        """How many times coarser than the finest each magnification is that the head reads, the finest, 1, last.

        (1,) but for heads of several magnifications, as (8, 4, 1) for 1.25x, 2.5x and 10x.
        """
        return (1,)

    def smallest_bag(self, mpp: float = 1.0) -> AnyBag:
        """Return one tile of zeros at each magnification, to try a head with; `mpp` of the finest."""
        first = torch.zeros(1, dtype=torch.int64)
        bags = tuple(
            Bag(
                torch.zeros((1, self.embed_dim)),
                places=first.expand(1, 2),
                mpp=factor * mpp,
                parents=first,
            )
            for factor in self.factors
        )
        return bags if len(bags) > 1 else bags[0]

    def build(self) -> MILModel:
        """Return the aggregator with fresh weights."""
        raise NotImplementedError
