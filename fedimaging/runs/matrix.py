"""Hospital × hospital: every model that a run trained, tried on every hospital's test patients."""

from collections.abc import Mapping
from typing import Any

Cells = dict[str, dict[str, Any]]


def matrix(report: Mapping[str, Any]) -> dict[str, Any] | None:
    """`matrix` of report.json, by the primary metric: `metric`, `hospitals` (columns), and `rows`, one a model: each
    hospital's own, `Pooled`, `Federated`. None for a run without baselines.

    A cell is an interval over the hospital's test patients with `why`: None, or why there is no figure.
    """
    baselines = report.get("baselines") or {}
    alone = baselines.get("local_only") or {}
    if not alone.get("matrix"):
        return None
    sites, metric = report["sites"], report["task"]["primary_metric"]
    places = sorted((name for name in sites if sites[name]["test_patients"]), key=lambda n: (sites[n]["role"] == "held_out", n))
    kind = report["task"]["kind"]

    def row(model: str, of: str, tables: Mapping[str, Any], why: str) -> dict[str, Any]:
        return {"model": model, "of": of, "cells": {p: _cell(tables.get(p), metric, kind, why) for p in places}}

    refused = alone.get("refused") or {}
    rows = [
        row(name, "local_only", tables, f"its training was refused ({refused[name]})" if name in refused else "not tried here")
        for name, tables in alone["matrix"].items()
    ]
    if baselines.get("pooled"):
        rows.append(row("Pooled", "pooled", baselines["pooled"]["sites"], "nothing released"))
    rows.append(row("Federated", "federated", {n: site["test"] for n, site in sites.items()}, "nothing released"))
    return {"metric": metric, "hospitals": places, "rows": rows}


def _cell(table: Mapping[str, Any] | None, metric: str, kind: str, absent: str) -> dict[str, Any]:
    found = (table or {}).get(metric)
    if found is None:
        return {"value": None, "low": None, "high": None, "n_patients": None, "why": absent}
    return {**found, "why": undefined_words(found, kind) if found["value"] is None else None}


def undefined_words(interval: Mapping[str, Any], kind: str) -> str:
    """Why a metric has no value on the patients of an interval (as JSON)."""
    if not interval["n_patients"]:
        return "no patients"
    return "no class to compare" if kind == "segmentation" else "one class only"
