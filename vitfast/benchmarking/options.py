"""The options of ``python -m vitfast.benchmark``."""

from __future__ import annotations

from dataclasses import dataclass

from vitfast.benchmarking.run_options import ModelRunOptions, seconds_option
from vitfast.benchmarking.word_list import distinct, known_models, known_words, split_words
from vitfast.config import option
from vitfast.errors import UserError

PRECISIONS = ("fp32", "bf16", "fp16")
ENGINE_PRECISIONS = ("fp32", "bf16", "int8", "fp16_32")
LIBRARIES = ("torchvision", "timm")
PEER_NAMES = ("eager", "compile", "onnxruntime", "openvino", "torchao", "zentorch")


@dataclass
class BenchmarkOptions(ModelRunOptions):
    """Compares vitfast's models and operators with torchvision's, timm's and torch's, in one interleaved run."""

    model: str = option("vit_tiny_patch16_224", "one or more models, separated by commas; see vitfast.list_models()")
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
    seconds: float = seconds_option(45.0)

    def check(self, prefix: str = "") -> None:
        """As ``RunOptions.check``."""
        super().check(prefix)
        self.models()
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

    def engines(self) -> list[str]:
        """The engines that accelerated models are measured against; none for the comparison of libraries.

        Raises:
            UserError: one is unknown.
        """
        if split_words("peers", self.peers) == ["none"]:
            return []
        return known_words("peers", self.peers, PEER_NAMES, or_all=True)

    def operators(self) -> list[str] | None:
        """The names of the operators that are measured; None: all."""
        words = split_words("operator", self.operator)
        return None if words == ["all"] else distinct(words)

    def library_names(self) -> list[str]:
        """The libraries whose models are measured beside vitfast's.

        Raises:
            UserError: one is unknown.
        """
        return known_words("libraries", self.libraries, LIBRARIES, or_all=True)

    def models(self) -> list[str]:
        """The models' canonical names.

        Raises:
            UserError: there is no such model; the message names the nearest ones.
        """
        return known_models(self.model)

    def precisions(self) -> list[str]:
        """The precisions.

        Raises:
            UserError: one is unknown, or cannot be trained in.
        """
        words = known_words("precision", self.precision, ENGINE_PRECISIONS if self.engines() else PRECISIONS)
        if "fp16" in words and self.mode == "training":
            raise UserError("precision=fp16 cannot be measured in training, which would need a loss scale; use bf16")
        return words
