"""The documents name files that exist, and commands whose options do."""

from __future__ import annotations

import re
import runpy
from fnmatch import fnmatch
from pathlib import Path

import pytest

import vitfast
from vitfast.cli import COMMANDS
from vitfast.config import list_recipes
from vitfast.config.option import find_option, list_options
from vitfast.config.schema import Config

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/llms.txt"),
        *ROOT.glob("docs/[!_]*.md"),
        *ROOT.glob("docs/[!_]*/*.md"),
        *ROOT.glob("benchmarks/*.md"),
    ]
)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_named_tests_exist(document: Path) -> None:
    text = document.read_text()
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    missing = [link for link in links if link and not (document.parent / link).exists()]
    missing += [name for name in re.findall(r"`(tests/[\w/]+\.py)`", text) if not (ROOT / name).exists()]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_of_training_are_right(document: Path) -> None:
    known, wrong = list_options(Config), []
    for line in re.findall(r"^.*vitfast\.train .*$", document.read_text(), flags=re.M):
        command = line.split("vitfast.train ")[1].split("#")[0]
        for key, value in re.findall(r"([a-z_]+(?:\.[a-z_]+)*)=([^\s`…]*)", command):
            if find_option(known, key) is None:
                wrong.append(key)
            elif key == "recipe" and value.islower() and "." not in value and value not in list_recipes():
                wrong.append(value)
    assert not wrong


@pytest.mark.parametrize(
    ("page", "answer"),
    [
        ("guides/accelerate", "Hugging Face"),  # speed up a Hugging Face model
        ("guides/quantize", "format=FP8_E4M3FN"),  # evaluate FP8
        ("guides/train", "\n## Resume a run\n"),
        ("../CONTRIBUTING", "\n## An operator in five steps\n"),
        ("guides/gpu", "\n## Is my GPU supported?\n"),
    ],
)
def test_the_front_page_links_the_answer(page: str, answer: str) -> None:
    assert f":link: {page}\n" in (ROOT / "docs" / "index.md").read_text()
    assert answer in (ROOT / "docs" / f"{page}.md").read_text()


def test_contributing_shows_every_package() -> None:
    tree = (ROOT / "CONTRIBUTING.md").read_text().split("## Source tree")[1].split("```")[1]
    shown: dict[str, set[str]] = {}
    folder = ""
    for line in filter(None, tree.splitlines()):
        names = line.strip().split("   ")[0].split()
        if line.startswith(" "):
            shown[folder].update(name.rstrip("/") for name in names)
        else:
            folder = names[0]
            shown[folder] = set()
    paths = [f"{folder}{name}" for folder, names in shown.items() for name in names | {""}]
    assert not [path for path in paths if not (ROOT / path).exists()]
    for folder in ("vitfast/", "csrc/"):
        packages = {path.parent.name for path in (ROOT / folder).glob("*/*.*") if path.parent.name != "__pycache__"}
        assert packages == {name for name in shown[folder] if "." not in name}


def test_pytest_collects_every_folder(pytestconfig: pytest.Config) -> None:
    patterns = pytestconfig.getini("norecursedirs")
    folders = {path.parent for path in (ROOT / "tests").rglob("test_*.py")}
    assert not [folder for folder in folders if any(fnmatch(folder.name, pattern) for pattern in patterns)]


def test_the_chart_shows_the_committed_results() -> None:
    chart = runpy.run_path(str(ROOT / "benchmarks" / "speed_chart.py"))
    assert chart["PICTURE"].read_text() == chart["draw"]()


def test_the_reference_has_every_public_name() -> None:
    shown = re.findall(r"\.\. auto\w+:: vitfast\.(\w+)", (ROOT / "docs/reference/python.md").read_text())
    assert sorted([*shown, "__version__"]) == sorted(vitfast.__all__)


def test_the_reference_has_every_command() -> None:
    shown = re.findall(r"\{generate\} options (\w+)", (ROOT / "docs/reference/commands.md").read_text())
    assert sorted(shown) == sorted(COMMANDS)


def test_every_environment_variable_is_documented() -> None:
    sources = [*ROOT.glob("vitfast/**/*.py"), *ROOT.glob("build_backend/**/*.py"), *ROOT.glob("tests/support/*.py")]
    text = "".join(path.read_text() for path in sources)
    read = set(re.findall(r"\"(VITFAST_(?!SANITIZE_|HAS_|HOST_)[A-Z_]+)\"", text))
    text = (ROOT / "docs/reference/environment.md").read_text()
    assert len(read) > 5
    assert not {name for name in read if f"`{name}`" not in text}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 120
