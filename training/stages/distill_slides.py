"""Step 5, stage 2: the student MIL on LR bags, with or without the teacher's bag logits and attention."""

from __future__ import annotations

import torch
from torch import Tensor

from napari_lrmil.model.mil import MILOutput
from training.data.bags import Bag, parents_in_bag
from training.data.store import EmbeddingStore
from training.data.table import Split
from training.losses import attention_kl, bag_kl, guided_attention, hard_instance_loss
from training.mil_fit import fit_mil
from training.run_dir import load_tensors, save_tensors
from training.stages.context import Context

LABELS = {
    "lr_scratch": "LR from scratch",
    "stage1_only": "Stage 1 only",
    "stage2_only": "Stage 2 only",
    "lrmil": "Stage 2: slides",
    "random_init": "Random encoder",
}


def train_student(
    context: Context,
    split: Split,
    *,
    method: str,
    store: EmbeddingStore,
    embed_dim: int,
    distil: bool,
    key: str,
) -> None:
    """Train a MIL head on LR bags; write ``foldN/mil/<method>``.

    Parameters
    ----------
    context : Context
    split : Split
    method : str
    store : EmbeddingStore
        LR embeddings, of the undistilled or of the student encoder.
    embed_dim : int
        Their D.
    distil : bool
        Whether the teacher's bag logits and attention take part; else cross-entropy alone.
    key : str
        Hash of the step's inputs.
    """
    fold = f"fold{split.fold}"
    extra = _Distillation(context, split) if distil else None
    model = fit_mil(
        context.bags(store, split.train, share=0.75),
        context.bags(store, split.val, share=0.25),
        embed_dim=embed_dim,
        n_classes=len(context.class_names),
        config=context.config.mil,
        extra_loss=extra,
        ce_weight=context.config.stage2.l_ce if distil else 1.0,
        seed=context.config.run.seed,
        fabric=context.runtime.head_fabric,
        files=context.files(fold, method, key),
        reporter=context.reporter,
        description=LABELS[method],
    )
    save_tensors(context.run_dir.path(fold, "mil", f"{method}.safetensors"), model.state_dict())


class _Distillation:
    """The teacher's part of L2 for each training slide."""

    def __init__(self, context: Context, split: Split) -> None:
        self._config = context.config.stage2
        self._device = context.device
        outputs = load_tensors(context.run_dir.path(f"fold{split.fold}", "teacher_outputs.safetensors"))
        self._logits: dict[str, Tensor] = {}
        self._guided: dict[str, tuple[Tensor, Tensor]] = {}
        for tiles in context.tiles_of(split.train):
            name = tiles.row.slide_id
            self._logits[name] = outputs[f"{name}/bag_logits"].to(context.device)
            parent = torch.from_numpy(parents_in_bag(tiles, context.geometry.ratio))
            guided, has_children = guided_attention(
                outputs[f"{name}/attention_scores"], parent, len(tiles.lr_places), self._config.aggregation
            )
            self._guided[name] = (guided.to(context.device), has_children.to(context.device))

    def __call__(self, bag: Bag, output: MILOutput) -> dict[str, Tensor]:
        config = self._config
        guided, has_children = self._guided[bag.name]
        return {
            "bag": config.l_bag * bag_kl(output.bag_logits, self._logits[bag.name], config.temperature_bag),
            "soft": config.l_soft
            * attention_kl(output.attention_logits, guided, has_children, config.temperature_attention),
            "hard": config.l_hard
            * hard_instance_loss(output.instance_logits, guided, has_children, config.k),
        }
