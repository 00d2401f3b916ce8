"""Write docs/result.schema.json, the JSON schema of a prediction's document, from the code: `make schema`."""

from __future__ import annotations

from pathlib import Path

from napari_lrmil.atomic import write_text
from napari_lrmil.export.result import result_schema

SCHEMA = Path(__file__).resolve().parents[1] / "docs" / "result.schema.json"

if __name__ == "__main__":
    write_text(SCHEMA, result_schema())
