"""Tables of measurements, read from the JSON files in ``benchmarks/results``."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
_SIZES = {"vit_tiny_patch16_224": "ViT-Ti/16", "vit_small_patch16_224": "ViT-S/16", "vit_base_patch16_224": "ViT-B/16"}
_PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8"}


def speed_table(machine: str) -> str:
    """Images/s of accelerated models, and the ratio to the fastest other engine of the same run."""
    columns: dict[str, dict[str, dict[str, Any]]] = {}
    for outcome in _accelerate_outcomes(machine):
        labels = outcome["labels"]
        column = f"{_SIZES[labels['model']]}, batch {labels['batch']}"
        columns.setdefault(column, {})[outcome["precision"]] = {one["subject"]: one for one in outcome["standings"]}
    rows = []
    for precision, name in _PRECISIONS.items():
        cells = [_speed(column.get(precision, {}).get("vitfast")) for column in columns.values()]
        if any(cells):
            rows.append([name, *(cell or "not measured" for cell in cells)])
    for precision, name in _PRECISIONS.items():
        shares = [column.get(precision, {}).get("vitfast", {}).get("peak_share") for column in columns.values()]
        if any(shares):
            rows.append([f"{name}, of the arithmetic peak", *(f"{share:.0%}" if share else "" for share in shares)])
    eager = [f"{column['fp32']['eager']['images_per_s']:.3g}" for column in columns.values()]
    return _table(["precision", *columns], [*rows, ["PyTorch eager, float32", *eager]])


def comparison_table(result: str, only: str = "") -> str:
    """Every comparison of a result: the speed of each engine, or of one, and its ratio to the fastest other."""
    rows = []
    for outcome in _read(RESULTS / f"{result}.json")["outcomes"]:
        for one in outcome["standings"]:
            if not one["is_limit"] and only in ("", one["subject"]):
                units = {"images_per_s": "images/s", "gflop_per_s": "GFLOP/s", "gigabyte_per_s": "GB/s"}
                speed = next(f"{one[key]:,.3g} {unit}" for key, unit in units.items() if one[key] is not None)
                ratio = f"{one['speedup']['median']:.2f}x {one['against']}"
                rows.append([outcome["title"], *([] if only else [one["subject"]]), speed, ratio])
    return _table(["what", *([] if only else ["engine"]), "speed", "ratio to the fastest other"], rows)


def libraries_table(machine: str) -> str:
    """Accelerated models of other libraries in float32, against eager mode.

    Other engines in these results ran in vitfast's process and in one configuration, and are left out.
    """
    rows = []
    for path in sorted(RESULTS.glob(f"other_libraries*-{machine}-2threads.json")):
        for outcome in _read(path)["outcomes"]:
            subjects = {one["subject"]: one for one in outcome["standings"] if not one["is_limit"]}
            ours = subjects.pop("vitfast")
            eager = ours["images_per_s"] / subjects["eager"]["images_per_s"]
            speed = [f"{ours['images_per_s']:.3g}", f"{eager:.2f}x"]
            rows.append([outcome["labels"]["model"], f"{ours['error']:.0e}", *speed])
    return _table(["model, float32, batch 8", "error", "images/s", "against eager"], rows)


def accuracy_table(name: str) -> str:
    """Top-1 by number format, after training and trained in the format, and the differences to float32 in points."""
    kinds: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for figure in _read(RESULTS / f"quantization_accuracy-{name}.json")["figures"]:
        kinds[figure["format"] or "float32"][figure["kind"]][figure["seed"]] = 100 * figure["top1"]
    float32 = kinds["float32"]["float32"]
    rows = []
    for name_of_format, figures in kinds.items():
        after = figures.get("post-training") or figures.get("float32") or {}
        trained = next((values for kind, values in figures.items() if kind not in ("post-training", "float32")), {})
        difference = "" if name_of_format == "float32" else _difference(after, float32)
        rows.append([name_of_format, _mean(after), difference, _mean(trained), _difference(trained, float32)])
    return _table(["numbers", "after training", "difference", "trained on", "difference"], rows)


def run_table(metrics: str) -> str:
    """Accuracy on the test split at the end of a training run, from its ``metrics.jsonl``."""
    rows = [json.loads(line) for line in (RESULTS / f"{metrics}.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["split"] == "test"][-1]
    figures = {"top-1": last["top1"], "top-5": last["top5"]}
    figures |= {f"top-1 of exit {number}": value for number, value in enumerate(last.get("exits", ()), 1)}
    return _table(["epochs", *figures], [[str(last["epoch"]), *(f"{100 * value:.1f} %" for value in figures.values())]])


def shares_table(*results: str) -> str:
    """What the time of accelerated models goes to, by component."""
    found = [row for result in results for row in _read(RESULTS / f"{result}.json")["rows"]]
    names = [f"{_SIZES[row['model']]}, batch {row['batch']}, {row['precision']}" for row in found]
    rows = [[name, *(f"{x:.0%}" for x in row["shares"].values())] for name, row in zip(names, found, strict=True)]
    return _table(["model", *found[0]["shares"]], rows)


def _accelerate_outcomes(machine: str) -> list[dict[str, Any]]:
    """The outcomes of one machine, small models first."""
    paths = RESULTS.glob(f"accelerate_*-{machine}-2threads.json")
    outcomes = [outcome for path in paths for outcome in _read(path)["outcomes"] if outcome["precision"] in _PRECISIONS]
    order = list(_SIZES)
    return sorted(outcomes, key=lambda one: (order.index(one["labels"]["model"]), one["labels"]["batch"]))


def _speed(standing: dict[str, Any] | None) -> str:
    if standing is None:
        return ""
    ratio = standing["speedup"]
    quartiles = f"({ratio['lower']:.2f} to {ratio['upper']:.2f})"
    return f"{standing['images_per_s']:.3g}, **{ratio['median']:.2f}x** {quartiles} {standing['against']}"


def _mean(values: dict[int, float]) -> str:
    if not values:
        return ""
    spread = f" ({stdev(values.values()):.2f})" if len(values) > 1 else ""
    return f"{mean(values.values()):.2f}{spread}"


def _difference(values: dict[int, float], reference: dict[int, float]) -> str:
    return f"{mean(values[seed] - reference[seed] for seed in values):+.2f}" if values else ""


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
