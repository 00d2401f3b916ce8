"""The losses of LRMIL, pure functions, of tiles in stage 1 and of slides in stage 2."""

from training.losses.slide import (
    attention_kl,
    bag_kl,
    guided_attention,
    hard_attention_loss,
    hard_instance_loss,
)
from training.losses.tile import (
    child_attention_loss,
    last_layer_loss,
    layer_loss,
    renormalised_weights,
    standardised,
)

__all__ = [
    "attention_kl",
    "bag_kl",
    "child_attention_loss",
    "guided_attention",
    "hard_attention_loss",
    "hard_instance_loss",
    "last_layer_loss",
    "layer_loss",
    "renormalised_weights",
    "standardised",
]
