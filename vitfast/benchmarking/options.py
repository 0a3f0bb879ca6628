"""The options of ``python -m vitfast.benchmark``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from vitfast.config import option
from vitfast.errors import UserError
from vitfast.models.registry import resolve_name

Value = TypeVar("Value")

PRECISIONS = ("fp32", "bf16", "fp16")
ENGINE_PRECISIONS = ("fp32", "bf16", "int8", "fp16_32")
LIBRARIES = ("torchvision", "timm")
PEER_NAMES = ("eager", "compile", "onnxruntime", "openvino", "torchao", "zentorch")


@dataclass
class BenchmarkOptions:
    """Compares vitfast's models and operators with torchvision's, timm's and torch's, in one interleaved run."""

    model: str = option("vit_tiny_patch16_224", "one or more models, separated by commas; see vitfast.list_models()")
    batch: str = option("8", "images in a batch, one or more sizes: batch=1,8")
    precision: str = option(
        "fp32",
        f"one or more of {', '.join(PRECISIONS)}, separated by commas; fp16 is not trained in; "
        f"with peers: {', '.join(ENGINE_PRECISIONS)}",
    )
    peers: str = option(
        "none",
        f"measure accelerated models against other engines instead: all, or some of {', '.join(PEER_NAMES)}; "
        "what is not installed is said",
    )
    mode: str = option(
        "all",
        "whole models in evaluation, training steps, single operators at the models' shapes, or all three",
        choices=["inference", "training", "operators", "all"],
    )
    operator: str = option("all", "operators: only these, by the names in the tables: operator=attention,mlp")
    backward: bool = option(False, "operators: measure forward and backward together")
    heads: int | None = option(
        None, "operators: so many heads share a model's channels; null: as many as it has", minimum=1
    )
    compile: bool = option(False, "models: measure each one through torch.compile, too")
    libraries: str = option(
        "all", f"models: whose are measured beside vitfast's: all, or some of {', '.join(LIBRARIES)}"
    )
    limits: bool = option(
        False, "measure a large copy and a large matrix product in each comparison, and shares of them"
    )
    cold_cache: bool = option(False, "empty the caches before every run")
    seconds: float = option(45.0, "time for all measurements together; building and checking come on top", above=0)
    stop_after: float | None = option(
        None, "seconds after which no comparison begins, building included; resume=true goes on", above=0
    )
    threads: int | None = option(None, "CPU threads; null: torch's choice", minimum=1)
    device: str = option("auto", "auto: a GPU if there is one", choices=["auto", "cpu", "cuda"])
    json: str | None = option(None, "file for the results as JSON; the tables go beside it, as .md")
    resume: bool = option(False, "go on with an interrupted run: keep what json= has, and measure the rest")

    def check(self, prefix: str = "") -> None:
        """Checks what limits cannot say, so that a mistake is told before anything is measured.

        Raises:
            UserError: a model, batch, precision or file is not possible.
        """
        self.models()
        self.batches()
        self.precisions()
        self.library_names()
        chosen = ["backward=true"] if self.backward else []
        if self.operators() is not None:
            chosen.append(f"operator={self.operator}")
        if self.heads is not None:
            chosen.append(f"heads={self.heads}")
        for given in chosen:
            if self.mode not in ("operators", "all"):
                raise UserError(f"{given} is about single operators; mode={self.mode} has none, use mode=operators")
        if self.compile and self.mode == "operators":
            raise UserError(
                "compile=true is about whole models; mode=operators has none, use mode=inference or training"
            )
        if self.engines() and (self.mode not in ("inference", "all") or self.compile or chosen):
            raise UserError(
                f"peers={self.peers} compares whole models in evaluation; leave mode, compile, operator, backward out"
            )
        if self.json is not None:
            check_json_path(self.json)

    def engines(self) -> list[str]:
        """The engines that accelerated models are measured against; none for the comparison of libraries.

        Raises:
            UserError: one is unknown.
        """
        words = _words("peers", self.peers)
        if words == ["none"]:
            return []
        if words == ["all"]:
            return list(PEER_NAMES)
        for word in words:
            if word not in PEER_NAMES:
                raise UserError(f"peers={self.peers}: {word!r} is unknown; allowed: all, {', '.join(PEER_NAMES)}")
        return _distinct(words)

    def operators(self) -> list[str] | None:
        """The names of the operators that are measured; None: all."""
        words = _words("operator", self.operator)
        return None if words == ["all"] else _distinct(words)

    def library_names(self) -> list[str]:
        """The libraries whose models are measured beside vitfast's.

        Raises:
            UserError: one is unknown.
        """
        words = _words("libraries", self.libraries)
        for word in words:
            if words != ["all"] and word not in LIBRARIES:
                raise UserError(
                    f"libraries={self.libraries}: {word!r} is unknown; allowed: all, {', '.join(LIBRARIES)}"
                )
        return list(LIBRARIES) if words == ["all"] else _distinct(words)

    def models(self) -> list[str]:
        """The models' canonical names.

        Raises:
            UserError: there is no such model; the message names the nearest ones.
        """
        return _distinct([resolve_name(name) for name in _words("model", self.model)])

    def batches(self) -> list[int]:
        """The batch sizes.

        Raises:
            UserError: one is no whole number above 0.
        """
        return parse_counts("batch", self.batch, minimum=1)

    def precisions(self) -> list[str]:
        """The precisions.

        Raises:
            UserError: one is unknown, or cannot be trained in.
        """
        words = _words("precision", self.precision)
        allowed = ENGINE_PRECISIONS if self.engines() else PRECISIONS
        for word in words:
            if word not in allowed:
                raise UserError(f"precision={self.precision}: {word!r} is unknown; allowed: {', '.join(allowed)}")
        if "fp16" in words and self.mode == "training":
            raise UserError("precision=fp16 cannot be measured in training, which would need a loss scale; use bf16")
        return _distinct(words)


def parse_counts(key: str, text: str, *, minimum: int) -> list[int]:
    """Turns ``"1,8"`` into ``[1, 8]``, each number once.

    Args:
        key: the option, for the message.
        text: its value.
        minimum: the smallest allowed number.

    Raises:
        UserError: an element is no whole number, or too small.
    """
    words = _words(key, text)
    for word in words:
        if not (word.isascii() and word.isdigit() and int(word) >= minimum):
            raise UserError(f"{key}={text}: {word!r} is no whole number >= {minimum}; write {key}=8 or {key}=1,8")
    return _distinct([int(word) for word in words])


def check_json_path(path: str) -> None:
    """Raises UserError unless a ``.json`` file can be made there."""
    target = Path(path)
    if target.suffix != ".json":
        raise UserError(f"json={path} must end in .json; the tables are written beside it, with .md in its place")
    if target.is_dir():
        raise UserError(f"json={path} is a folder; give a file")
    if not target.parent.is_dir():
        raise UserError(f"json={path}: there is no folder {target.parent}; create it first")


def _words(key: str, text: str) -> list[str]:
    """Splits ``a,b``; brackets around it, as for the list options of other verbs, are allowed."""
    words = [word.strip() for word in text.strip().removeprefix("[").removesuffix("]").split(",")]
    if not all(words):
        raise UserError(f"{key}={text} has an empty element; separate the values by single commas")
    return words


def _distinct(values: list[Value]) -> list[Value]:
    return list(dict.fromkeys(values))
