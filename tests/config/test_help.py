"""``--help`` shows every option, and shows it aligned."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass

import pytest

from vitfast.config import Config, help_text, load_config, load_options, option
from vitfast.config.option import list_options


def test_every_option_has_a_meaning() -> None:
    def check(schema: type, prefix: str = "") -> None:
        assert schema.__doc__
        for one in fields(schema):
            if one.default_factory is not None and is_dataclass(one.default_factory):
                check(one.default_factory, f"{prefix}{one.name}.")
            else:
                assert one.metadata.get("help"), f"{prefix}{one.name} has no help"

    check(Config)


def test_every_option_is_listed_with_type_default_and_meaning() -> None:
    text = help_text()
    lines = {line.split()[0]: line for line in text.splitlines() if line.startswith("  ") and line.strip()}

    for key, info in list_options(Config).items():
        assert key in lines
        assert info.type_name() in lines[key]
        assert info.help.split()[0] in lines[key]
    assert "0.001" in lines["optim.lr"]
    assert "one of: fp32, bf16" in " ".join(text.split())


def test_columns_are_aligned_and_the_page_is_120_wide() -> None:
    text = help_text()
    rows = {line.split()[0]: line for line in text.splitlines() if line.startswith("  ") and line.strip()}
    options = list_options(Config)

    assert max(map(len, text.splitlines())) <= 120
    type_column, default_column, help_column = (rows["seed"].index(word) for word in ("int", "0", "seed of"))
    for key, info in options.items():
        assert rows[key][type_column:].startswith(info.type_name() + " ")
        assert rows[key][default_column - 2 : default_column] == "  "
        assert rows[key][help_column:].startswith(info.help[:10])


def test_defaults_are_those_of_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        load_config(["--help", "recipe=vit_small_cifar10_32px"])
    text = capsys.readouterr().out

    assert stop.value.code == 0
    assert "vit_mini_patch4_32" in text
    assert "recipe=vit_small_cifar10_32px" in text
    assert "vit_nano" not in text


@dataclass
class SmallOptions:
    """Does something small."""

    checkpoint: str = option(help="a run or a checkpoint")
    top: int = option(3, "how many classes", minimum=1)


def test_required_options_of_another_command_are_marked(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        load_options(SmallOptions, ["-h"], "vitfast predict")
    text = capsys.readouterr().out

    assert stop.value.code == 0
    assert text.startswith("usage: vitfast predict checkpoint=… [key=value …]")
    assert "Does something small." in text
    assert "(required)" in text
    assert "recipe" not in text


@dataclass
class SharedOptions:
    """What several commands have in common."""

    seconds: float = option(60.0, "how long", above=0)
    json: str | None = option(None, "file for the results")


@dataclass
class OwnOptions(SharedOptions):
    """Adds an option and changes a default."""

    model: str = option("vit", "which")
    seconds: float = option(5.0, "how long", above=0)


def test_own_options_precede_inherited_ones() -> None:
    options = list_options(OwnOptions)
    assert list(options) == ["model", "seconds", "json"]
    assert options["seconds"].default == 5.0
    assert load_options(OwnOptions, ["json=a.json"], "benchmark") == OwnOptions(5.0, "a.json", "vit")
