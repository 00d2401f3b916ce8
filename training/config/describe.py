"""Every key of the config with its default and meaning, as text."""

from __future__ import annotations

from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from training.config.compare import CompareRow
from training.config.run_config import RunConfig


def config_table() -> Table:
    """Return a table with a row a key."""
    table = Table("key", "default", "meaning", box=SIMPLE_HEAD, pad_edge=False)
    for section, of_section in RunConfig.model_fields.items():
        model = CompareRow if section == "compare" else of_section.annotation
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)
        for name, field in model.model_fields.items():
            default = field.get_default(call_default_factory=True)
            text = "[dim]required[/]" if default is PydanticUndefined else escape(_text(default))
            table.add_row(f"{section}.{name}", text, escape(field.description or ""))
        table.add_section()
    return table


def _text(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
