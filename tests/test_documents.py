"""The documents name files that exist, and commands whose options do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vitfast.config import list_recipes
from vitfast.config.option import find_option, list_options
from vitfast.config.schema import Config

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])


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
