from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from vitfast.benchmarking.machine import describe_machine
from vitfast.benchmarking.results import (
    Results,
    machine_line,
    number,
    read_tables,
    table_text,
)
from vitfast.benchmarking.table import Table
from vitfast.errors import UserError


def row(name, milliseconds, **changes):
    values = {
        "subject": name,
        "is_limit": False,
        "error": 1.5e-7,
        "time_ms": {"median": milliseconds, "lower": 0.9 * milliseconds, "upper": 1.1 * milliseconds},
        "rounds": 12,
        "repeats": 3,
        "images_per_s": 1234.5,
        "gflop_per_s": 0.5,
        "gigabyte_per_s": None,
        "against": "timm",
        "speedup": {"median": 2.0, "lower": 1.875, "upper": 2.25},
        "peak_share": None,
        "copy_share": None,
    }
    return {**values, **changes}


@pytest.fixture
def table():
    return Table(
        mode="inference",
        title="a model",
        labels={"batch": 8},
        precision="fp32",
        build=lambda table: [],
        reference_name="timm in fp32",
        left_out={"torchvision": "no such model"},
        images=8,
        gflop=2.5,
        gigabyte=None,
        rows=[
            row("vitfast", 6.25),
            row("copy", 0.0125, is_limit=True, error=None, against=None, speedup=None, images_per_s=None),
        ],
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"), (0.0, "0.0e+00"), (0.000123, "1.2e-04"), (0.0123, "0.0123"), (0.5, "0.500"), (9.876, "9.88"),
        (99.96, "100"), (123.4, "123"), (999.4, "999"), (1234.5, "1,234"), (5_900_000.0, "5,900,000"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


def test_a_table_has_time_rates_speed_and_error(table):
    title, header, _, first, second, left_out = table_text(table).splitlines()
    assert title == "a model (2.50 GFLOP; error against timm in fp32)"
    assert header.split() == ["subject", "time", "images/s", "GFLOP/s", "speed", "against", "error", "rounds"]
    assert first.split("  ")[0] == "vitfast"
    assert "6.25 ms (5.62–6.88)" in first
    assert "2.00x (1.88–2.25)" in first
    assert "1.5e-07" in first
    assert second.startswith("[copy]")
    assert "12.5 µs (11.3–13.8)" in second
    assert left_out == "without torchvision: no such model"


def test_a_rate_that_nobody_has_is_no_column(table):
    assert "GB/s" not in table_text(table)


def test_a_processor_without_a_name_is_described_by_its_instruction_sets():
    machine = describe_machine(torch.device("cpu"))
    for names, text in (
        (["avx2", "avx512f", "amx_tile", "amx_bf16"], " (amx_tile amx_bf16), "),
        (["avx2", "fma"], ", "),
    ):
        machine["cpu"] |= {"model": "Intel(R) Xeon(R) Processor", "cores": 2, "instruction_sets": names}
        assert machine_line(machine).startswith(f"Intel(R) Xeon(R) Processor{text}2 cores, ")


def test_markdown_has_machine_warnings_and_a_table_for_each_comparison(table):
    machine = describe_machine(torch.device("cpu"))
    text = Results(machine, {}, ["too busy"], [table, table]).markdown()
    assert text.count("## a model") == 2
    assert "**Warning**: too busy" in text
    assert machine["cpu"]["model"] in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1
    assert rows[1].startswith("| --- | ---: |")


def test_json_can_be_read_back_by_strict_readers(table, tmp_path):
    table.rows = [row("vitfast", 1 / 3, error=math.nan)]
    results = Results(describe_machine(torch.device("cpu")), {"batch": "8"}, [], [table])
    results.write(tmp_path / "a.json")
    text = (tmp_path / "a.json").read_text()
    content = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert content["format_version"] == 1
    assert content["options"] == {"batch": "8"}
    (found,) = content["outcomes"][0]["standings"]
    assert found["time_ms"]["median"] == 0.333333
    assert found["error"] is None
    assert "## a model" in (tmp_path / "a.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.md"]


def test_a_file_that_cannot_be_written_is_reported(table, tmp_path):
    with pytest.raises(UserError, match=r"json=.*cannot be written"):
        Results(describe_machine(torch.device("cpu")), {}, [], [table]).write(tmp_path / "missing" / "a.json")


def test_written_results_are_read_back(tmp_path, table):
    path = tmp_path / "results.json"
    assert read_tables(path) == []
    machine = describe_machine(torch.device("cpu"))
    Results(machine, {}, tables=[table]).write(path)
    written = path.read_text()
    Results(machine, {}, tables=read_tables(path)).write(path)
    assert path.read_text() == written
    assert read_tables(path)[0].rows[0]["time_ms"]["median"] == 6.25


@pytest.mark.parametrize("text", ["", "{}", '{"format_version": 0}', '{"format_version": 1, "outcomes": [{}]}'])
def test_a_file_with_something_else_is_refused(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"results\.json holds no results"):
        read_tables(path)


def test_results_of_earlier_versions_are_read():
    tables = read_tables(Path(__file__).parents[2] / "benchmarks" / "results" / "operators-epyc-zen4-2threads.json")
    assert len(tables) > 10
    assert "vitfast" in table_text(tables[0])
