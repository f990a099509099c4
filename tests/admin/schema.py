"""A small validator of JSON schemas: as much as the OpenAPI file of the admin interface uses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import oinetd.admin

OPENAPI: dict[str, Any] = json.loads((Path(oinetd.admin.__file__).parent / "openapi.json").read_text())

_KINDS: dict[str, Any] = {
    "string": str,
    "boolean": bool,
    "array": list,
    "object": dict,
    "null": type(None),
}


def faults(value: Any, schema: dict[str, Any], where: str = "") -> list[str]:
    """What is wrong with `value`."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return faults(value, OPENAPI["components"]["schemas"][name], where or name)
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if not any(_is(value, kind) for kind in kinds):
        return [f"{where}: {value!r} is not of type {kinds}"]
    found = []
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{where}: {value!r} is not one of {schema['enum']}")
    if isinstance(value, list) and "items" in schema:
        for index, item in enumerate(value):
            found += faults(item, schema["items"], f"{where}[{index}]")
    if isinstance(value, dict):
        known, more = schema.get("properties", {}), schema.get("additionalProperties", True)
        found += [f"{where}: {name} is missing" for name in schema.get("required", ()) if name not in value]
        for name, item in value.items():
            if name in known:
                found += faults(item, known[name], f"{where}.{name}")
            elif more is False:
                found.append(f"{where}: {name} is not described")
            elif isinstance(more, dict):
                found += faults(item, more, f"{where}.{name}")
    return found


def _is(value: Any, kind: str) -> bool:
    if kind in ("integer", "number"):
        return isinstance(value, int if kind == "integer" else int | float) and not isinstance(value, bool)
    return isinstance(value, _KINDS[kind])
