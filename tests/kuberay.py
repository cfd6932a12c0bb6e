"""A validator of KubeRay's resources: their own fields from schemas/kuberay.yaml, pods and the like from Kubernetes' schemas.

Fields that are in neither are refused, as `kubectl apply` does (`--validate=strict`).
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

KUBERNETES = "v1.33.0"  # its pods have every field that KubeRay 1.7 knows
OWN = Path(__file__).parent / "schemas" / "kuberay.yaml"
PREFIX = "io.k8s.api."
NAME = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
# Kubernetes' own grammar of quantities; its published schema takes any string.
QUANTITY = {
    "anyOf": [
        {"type": "number"},
        {"type": "string", "pattern": r"^[+-]?(\d+(\.\d*)?|\.\d+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+)?$"},
    ]
}


@cache
def validator() -> Draft202012Validator:
    """The schema of a RayCluster or a RayJob, each by its kind."""
    folder = files("kubernetes_validate") / "kubernetes-json-schema" / f"{KUBERNETES}-local-strict"
    kubernetes = json.loads((folder / "_definitions.json").read_text())
    kubernetes["$defs"]["io.k8s.apimachinery.pkg.api.resource.Quantity"] = QUANTITY
    types = yaml.safe_load(OWN.read_text())
    schema = {
        "$defs": {name: _object(fields, kubernetes["$id"]) for name, fields in types.items()},
        "type": "object",
        "properties": {"kind": {"enum": ["RayCluster", "RayJob"]}},
        "required": ["kind"],
        "oneOf": [_resource(kind, types[kind], kubernetes["$id"]) for kind in ("RayCluster", "RayJob")],
    }
    registry = Registry().with_resource(kubernetes["$id"], Resource.from_contents(kubernetes))
    return Draft202012Validator(schema, registry=registry)


def _resource(kind: str, fields: dict[str, Any], kubernetes: str) -> dict[str, Any]:
    whole = _object(fields, kubernetes)
    metadata = {"$ref": f"{kubernetes}#/$defs/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}
    header = {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": kind},
        "metadata": {"allOf": [metadata, {"properties": {"name": NAME}, "required": ["name"]}]},
    }
    required = [*header, *whole["required"]]
    return {**whole, "properties": {**header, **whole["properties"]}, "required": required}


def _object(fields: dict[str, Any], kubernetes: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name.rstrip("!"): _kind(kind, kubernetes) for name, kind in fields.items()},
        "required": [name.rstrip("!") for name in fields if name.endswith("!")],
        "additionalProperties": False,
    }


def _kind(kind: str | list[str], kubernetes: str) -> dict[str, Any]:
    """The schema of one field's kind."""
    if isinstance(kind, list):
        return {"enum": [str(word) for word in kind]}
    if kind.endswith("[]"):
        return {"type": "array", "items": _kind(kind.removesuffix("[]"), kubernetes)}
    name, _, least = kind.partition(" >= ")
    limit = {"minimum": int(least)} if least else {}
    match name:
        case "string" | "boolean" | "number":
            return {"type": name}
        case "integer":
            return {"type": name, "maximum": 2**31 - 1, **limit}
        case "strings":
            return {"type": "object", "additionalProperties": {"type": "string"}}
        case "k8s.quantity":
            return QUANTITY
        case _ if name.startswith("k8s."):
            return {"$ref": f"{kubernetes}#/$defs/{PREFIX}{name.removeprefix('k8s.')}"}
        case _:
            return {"$ref": f"#/$defs/{name}"}
