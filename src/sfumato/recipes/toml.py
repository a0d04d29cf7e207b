"""Recipes as TOML and back: strict about keys and types, so that a typing error is found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import cattrs
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn

from sfumato.errors import ConfigError
from sfumato.networks.config import ADMConfig, UNetConfig
from sfumato.recipes.config import Recipe

_KINDS: dict[str, type[UNetConfig] | type[ADMConfig]] = {"unet": UNetConfig, "adm": ADMConfig}


def to_toml(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as nested tables that TOML can hold (unset fields are left out)."""
    return drop_none(_converter().unstructure(recipe))


def from_toml(tables: Mapping[str, Any]) -> Recipe:
    """Return the recipe that `to_toml` wrote; ConfigError names an unknown or wrong entry."""
    try:
        return _converter().structure(tables, Recipe)
    except ConfigError:
        raise
    except Exception as error:
        reasons = cattrs.transform_error(error, path="config")
        raise ConfigError("the recipe cannot be read: " + "; ".join(reasons)) from error


def strict_converter() -> cattrs.Converter:
    """Return a converter that refuses unknown keys and values of another type."""
    converter = cattrs.Converter(forbid_extra_keys=True)
    for kind in (int, float, bool, str):
        converter.register_structure_hook(kind, _plain)
    return converter


def _plain(value: Any, kind: type[Any]) -> Any:
    """Return the value, which must be of this type; a whole number also is a float."""
    if type(value) is kind:
        return value
    if kind is float and type(value) is int:
        return float(value)
    raise ValueError(f"expected {kind.__name__}, got {value!r}")


def _converter() -> cattrs.Converter:
    converter = strict_converter()

    def structure_network(tables: Any, _: Any) -> UNetConfig | ADMConfig:
        if not isinstance(tables, Mapping):
            raise ConfigError(f"the network is a table of settings, not {tables!r}")
        kind = tables.get("kind", "unet")
        if kind not in _KINDS:
            raise ConfigError(f"unknown network kind {kind!r}; known: {', '.join(_KINDS)}")
        rest = {key: value for key, value in tables.items() if key != "kind"}
        return converter.structure(rest, _KINDS[kind])

    for kind, cls in _KINDS.items():
        plain = make_dict_unstructure_fn(cls, converter)
        converter.register_unstructure_hook(
            cls, lambda value, plain=plain, kind=kind: {"kind": kind, **plain(value)}
        )
        converter.register_structure_hook(
            cls, make_dict_structure_fn(cls, converter, _cattrs_forbid_extra_keys=True)
        )
    converter.register_structure_hook(UNetConfig | ADMConfig, structure_network)
    converter.register_unstructure_hook(
        UNetConfig | ADMConfig, lambda value: converter.unstructure(value, type(value))
    )
    return converter


def drop_none(value: Any) -> Any:
    """Return plain values as TOML can hold them: without unset fields, tuples as lists."""
    if isinstance(value, dict):
        return {key: drop_none(item) for key, item in value.items() if item is not None}
    return list(map(drop_none, value)) if isinstance(value, list | tuple) else value


def difference(recipe: Recipe, preset: Recipe) -> dict[str, Any]:
    """Return the fields in which two recipes differ, by dotted name."""
    out: dict[str, Any] = {}

    def walk(prefix: str, a: Any, b: Any) -> None:
        for item in fields(a):
            ours, theirs = getattr(a, item.name), getattr(b, item.name, None)
            if is_dataclass(ours) and type(ours) is type(theirs):
                walk(f"{prefix}{item.name}.", ours, theirs)
            elif ours != theirs:
                out[f"{prefix}{item.name}"] = ours

    walk("", recipe, preset)
    return out
