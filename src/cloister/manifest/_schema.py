"""The form of a written manifest, for editors (JSON Schema) and for readers (Markdown), both from the model."""

from __future__ import annotations

from typing import Any, cast

from cloister.manifest._load import SHORTHANDS
from cloister.manifest._model import (
    CheckpointTerms,
    Image,
    KeyManager,
    Limits,
    Manifest,
    OffloadTerms,
    Output,
    Party,
    PrivacyBudget,
    PrivacyTerms,
    Release,
    Service,
    Stage,
    Tee,
    Validity,
    Worker,
)
from cloister.manifest._units import DURATIONS, SIZES
from cloister.wire import Message

__all__ = ["reference", "schema"]

_ORDER: tuple[tuple[str, type[Message]], ...] = (
    ("The whole", Manifest),
    ("`valid`", Validity),
    ("`parties.NAME`", Party),
    ("`key_managers.NAME`", KeyManager),
    ("`tees.NAME`", Tee),
    ("`workers.NAME`", Worker),
    ("`images.NAME`", Image),
    ("`images.NAME.budget`", PrivacyBudget),
    ("`stages.NAME`", Stage),
    ("`stages.NAME.outputs.NAME`", Output),
    ("`limits`", Limits),
    ("`stages.NAME.privacy`", PrivacyTerms),
    ("`stages.NAME.offload`", OffloadTerms),
    ("`stages.NAME.checkpoint`", CheckpointTerms),
    ("`services.NAME`", Service),
    ("`releases[]`", Release),
)


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a manifest as it may be written: what units and shorthands allow, too.

    It knows the form only; that the parts fit each other is for ``check``.
    """
    document = cast("dict[str, Any]", _strict(Manifest.model_json_schema()))
    for cls, shorthands in SHORTHANDS.items():
        _allow_units(document["$defs"][cls.__name__], shorthands)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:cloister:manifest:v1",
        **document,
        "title": "Cloister manifest",
    }


def reference() -> str:
    """Every field as Markdown tables: the middle of docs/manifest.md."""
    definitions = schema()
    blocks: list[str] = []
    for title, cls in _ORDER:
        found = definitions if cls is Manifest else definitions["$defs"][cls.__name__]
        first = str(cls.__doc__).partition("\n")[0].replace("``", "`")
        rows = [_row(name, cls, found) for name in cls.model_fields]
        blocks.append(
            "\n".join(
                [f"### {title}", "", first, "", "| key | value | default | meaning |", "|---|---|---|---|", *rows]
            )
        )
    return "\n\n".join(blocks) + "\n"


def _strict(node: Any) -> Any:
    """As our reader is: no key outside the pattern of names, and absence instead of null."""
    if isinstance(node, list):
        return [_strict(item) for item in cast("list[Any]", node)]
    if not isinstance(node, dict):
        return node
    result = {key: _strict(value) for key, value in cast("dict[str, Any]", node).items() if key != "title"}
    if "properties" in node:
        # A field may be called anything, "title" too: its entry is no annotation.
        fields = cast("dict[str, dict[str, Any]]", node["properties"])
        result["properties"] = {name: _strict(value) for name, value in fields.items()}
    choices = [choice for choice in result.get("anyOf", []) if choice != {"type": "null"}]
    if len(choices) == 1:
        del result["anyOf"]
        result = {**choices[0], **result}
    if result.get("default", ...) is None:
        del result["default"]
    if "patternProperties" in result:
        result["additionalProperties"] = False
        result["propertyNames"] = {"maxLength": 64}
    return result


def _allow_units(definition: dict[str, Any], shorthands: dict[str, str]) -> None:
    fields, required = definition["properties"], definition.pop("required", [])
    alternatives: list[dict[str, Any]] = []
    for short, name in shorthands.items():
        units = SIZES if name.endswith("_bytes") else DURATIONS
        amount = {"type": "string", "pattern": f"^[1-9][0-9]{{0,11}} ?({'|'.join(units)})$"}
        number = {key: value for key, value in fields[name].items() if key not in ("default", "description")}
        kept = {key: value for key, value in fields[name].items() if key in ("default", "description")}
        fields[name] = {"anyOf": [number, amount], **kept}
        fields[short] = {**fields[name], "description": f"`{name}`, by a shorter name."}
        both = {"required": [name, short]}
        alternatives.append(
            {"oneOf": [{"required": [name]}, {"required": [short]}]} if name in required else {"not": both}
        )
    definition["allOf"] = alternatives


def _row(name: str, cls: type[Message], definition: dict[str, Any]) -> str:
    info, found = cls.model_fields[name], definition["properties"][name]
    shorts = [short for short, field in SHORTHANDS.get(cls, {}).items() if field == name]
    keys = " or ".join(f"`{key}`" for key in (name, *shorts))
    default = "**required**" if info.is_required() else _default(found.get("default"))
    return f"| {keys} | {_kind(found)} | {default} | {info.description} |"


def _default(value: Any) -> str:
    if value in (None, [], {}, ""):
        return "none"
    if isinstance(value, dict):
        return "its own defaults"
    text = ", ".join(map(str, cast("list[Any]", value))) if isinstance(value, list) else str(value)
    return f"`{text}`"


def _kind(found: dict[str, Any]) -> str:
    if "anyOf" in found:
        return "number, or text with a unit"
    if "const" in found:
        return f"`{str(found['const']).lower()}`"
    if "enum" in found:
        return " · ".join(f"`{value}`" for value in found["enum"])
    if "$ref" in found:
        return "mapping, below"
    if "prefixItems" in found:
        return f"{len(found['prefixItems'])} of: {_kind(found['prefixItems'][0])}"
    if found.get("type") == "array":
        return f"list of: {_kind(found['items'])}"
    if found.get("type") == "object":
        return "mapping by name"
    return {"string": "text", "integer": "number", "boolean": "`true`"}[str(found["type"])]
