"""The one shape in which every measuring command writes its figures, so that they can be compared over time."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import recsys_llm
from recsys_llm.files import replaced_file


def machine() -> dict[str, Any]:
    """Return what a figure depends on: processor, cores, GPU, torch."""
    import torch

    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "torch": version("torch"),
    }


def report(
    command: str, *, settings: Mapping[str, Any], results: list[dict[str, Any]], targets: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return the head that every report shares, and its figures.

    Parameters
    ----------
    results
        Each with ``name`` and figures (``median``, ``p99``, ``runs``; for a quality also ``ci95`` and ``seeds``).
    targets
        Each with ``name``, ``target``, ``value`` and ``met``.
    """
    return {
        "command": command,
        "version": recsys_llm.__version__,
        "machine": machine(),
        "settings": dict(settings),
        "results": results,
        "targets": targets,
    }


def write_report(file: Path, content: Mapping[str, Any]) -> None:
    """Write a report as JSON, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(file) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def show_report(content: Mapping[str, Any], echo: Callable[[str], object]) -> None:
    """Print a line for each result and each target of a benchmark."""
    for result in content["results"]:
        rates = [(name.removesuffix("_per_s"), rate) for name, rate in result.items() if name.endswith("_per_s")]
        shown = "".join(f"{rate:>12,.0f} {unit}/s" for unit, rate in rates)
        echo(f"{result['name']:<40} median {result['median']:10.4g}{shown}")
    for target in content["targets"]:
        spread = f"  ({target['lowest']:.3g} to {target['highest']:.3g})" if "lowest" in target else ""
        met = "met" if target["met"] else "NOT met"
        echo(f"{target['name']:<40} {target['value']:>10.4g}{spread}  target {target['target']:<9} {met}")


def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
