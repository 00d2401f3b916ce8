"""Step 2: the teacher MIL on HR bags, and what it says of every training slide."""

from __future__ import annotations

from napari_lrmil.model.mil import MILModel
from training.data.bags import load_bags
from training.data.table import Split
from training.mil_fit import bag_outputs, fit_mil
from training.run_dir import save_tensors
from training.stages.context import Context


def train_teacher(context: Context, split: Split) -> MILModel:
    """Train on the HR bags of a fold; write ``foldN/teacher_mil`` and ``foldN/teacher_outputs``."""
    store = context.store("hr")
    train = load_bags(store, split.train, context.class_names)
    val = load_bags(store, split.val, context.class_names)
    fold = f"fold{split.fold}"
    model = fit_mil(
        train,
        val,
        n_classes=len(context.class_names),
        config=context.config.mil,
        extra_loss=None,
        seed=context.config.run.seed,
        device=context.device,
        metrics_csv=context.run_dir.path(fold, "metrics", "teacher_hr.csv"),
        reporter=context.reporter,
        description="Teacher MIL",
    )
    save_tensors(context.run_dir.path(fold, "mil", "teacher_hr.safetensors"), model.state_dict())
    tensors = {}
    for bag, output in zip(train, bag_outputs(model, train, context.device), strict=True):
        tensors[f"{bag.name}/bag_logits"] = output.bag_logits
        tensors[f"{bag.name}/attention_logits"] = output.attention_logits
        tensors[f"{bag.name}/attention_scores"] = output.attention_scores
    save_tensors(context.run_dir.path(fold, "teacher_outputs.safetensors"), tensors)
    return model
