"""The configuration of a run: one frozen, strict section a room (`sections`), read from TOML (`load`)."""

from training.config.load import content_hash, load_config
from training.config.sections import (
    DataSection,
    EncoderSection,
    EvaluateSection,
    ExportSection,
    Method,
    MILSection,
    RunConfig,
    RunSection,
    Section,
    Shortcut,
    Stage1Section,
    Stage2Section,
    StudentSection,
    TilesSection,
)

__all__ = [
    "DataSection",
    "EncoderSection",
    "EvaluateSection",
    "ExportSection",
    "MILSection",
    "Method",
    "RunConfig",
    "RunSection",
    "Section",
    "Shortcut",
    "Stage1Section",
    "Stage2Section",
    "StudentSection",
    "TilesSection",
    "content_hash",
    "load_config",
]
