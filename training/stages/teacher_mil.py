"""Step 2: the teacher MIL on HR bags, and what it says of every training slide."""

from __future__ import annotations

from training.data.table import Split
from training.mil_fit import bag_outputs, fit_mil
from training.run_dir import save_tensors
from training.stages.context import Context


def train_teacher(context: Context, split: Split, *, embed_dim: int, key: str) -> None:
    """Train on the HR bags of a fold; write ``foldN/mil/teacher_hr`` and ``foldN/teacher_outputs``.

    Parameters
    ----------
    context : Context
    split : Split
    embed_dim : int
        D of f.
    key : str
        Hash of the step's inputs.
    """
    store = context.hr_store()
    train = context.bags(store, split.train, share=0.75)
    fold = f"fold{split.fold}"
    model = fit_mil(
        train,
        context.bags(store, split.val, share=0.25),
        embed_dim=embed_dim,
        n_classes=len(context.class_names),
        config=context.config.mil,
        extra_loss=None,
        seed=context.config.run.seed,
        fabric=context.runtime.head_fabric,
        files=context.files(fold, "teacher_hr", key),
        reporter=context.reporter,
        description="Teacher MIL",
    )
    save_tensors(context.run_dir.path(fold, "mil", "teacher_hr.safetensors"), model.state_dict())
    tensors = {}
    names = [row.slide_id for row in split.train]
    for name, output in zip(names, bag_outputs(model, train, context.device), strict=True):
        tensors[f"{name}/bag_logits"] = output.bag_logits
        tensors[f"{name}/attention_logits"] = output.attention_logits
        tensors[f"{name}/attention_scores"] = output.attention_scores
    save_tensors(context.run_dir.path(fold, "teacher_outputs.safetensors"), tensors)
