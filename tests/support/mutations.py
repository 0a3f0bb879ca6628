"""Mutations of nested values and of files."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 10**6, 2**31, 2**62, 10**400, 0.5, -0.5, 1e308, 1e-320),
    *(
        float("nan"),
        float("inf"),
        -float("inf"),
        "",
        "text",
        "0",
        "\0",
        "\ud800",
        "vit_base_patch16_224",
        "timm/resnet50",
    ),
    *([], [0], [[1.0]], {}, {"name": "vit_nano_patch2_8"}, ["a"] * 3),
)
BYTES = (
    b"\0",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\n",
    b"[" * 3000,
    b"{" * 3000,
    b"-1",
    b"9" * 30,
    b"9" * 5000,
    b"NaN",
    b"\x7f" * 8,
)


def mutated(node: Any, chance: random.Random, values: tuple[Any, ...] = VALUES) -> Any:
    """A copy in which an entry, at any depth, is replaced, removed, added, or replaced by another one."""
    if not isinstance(node, (dict, list, tuple)) or not node or chance.random() < 0.05:
        return chance.choice(values)
    pairs = list(node.items()) if isinstance(node, dict) else list(enumerate(node))
    place = chance.randrange(len(pairs))
    key, value = pairs[place]
    action = chance.random()
    if action < 0.05:
        del pairs[place]
    elif action < 0.1:
        pairs.append(
            (chance.choice(["more", "7", "name", *(() if values is VALUES else (7, (1, "a")))]), chance.choice(values))
        )
    elif action < 0.15:
        pairs[place] = (key, chance.choice(pairs)[1])
    else:
        pairs[place] = (key, mutated(value, chance, values))
    return dict(pairs) if isinstance(node, dict) else type(node)(value for _, value in pairs)


def mutate_file(path: Path, chance: random.Random) -> None:
    """Changes a file in place: a value of its JSON or of its safetensors header, its lines, or its bytes."""
    content = path.read_bytes()
    by_structure = chance.random() < 0.6
    if by_structure and path.suffix == ".jsonl":
        lines = content.splitlines()
        place = chance.randrange(len(lines))
        lines[place] = _mutated_json(lines[place], chance)
        path.write_bytes(b"\n".join(lines) + b"\n")
    elif by_structure and (path.suffix == ".json" or content[:1] == b"{"):
        path.write_bytes(_mutated_json(content, chance))
    elif by_structure and path.suffix == ".safetensors":
        (length,) = struct.unpack("<Q", content[:8])
        header = _mutated_json(content[8 : 8 + length], chance)
        path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])
    elif by_structure and path.suffix in (".txt", ".yaml"):
        lines = content.splitlines(keepends=True)
        first, second = chance.randrange(len(lines)), chance.randrange(len(lines))
        lines[first] = chance.choice([b"", lines[second], lines[first] * 2, lines[first][::-1], lines[first].strip()])
        path.write_bytes(b"".join(lines))
    else:
        path.write_bytes(_mutated_bytes(content, chance))


def _mutated_json(content: bytes, chance: random.Random) -> bytes:
    """Changes a value at any depth, also within a text of a safetensors header that is JSON itself."""
    tree = json.loads(content)
    metadata = tree.get("__metadata__", {}) if isinstance(tree, dict) else {}
    texts = [key for key, value in metadata.items() if value.startswith("{")]
    if texts and chance.random() < 0.7:
        key = chance.choice(texts)
        metadata[key] = _mutated_json(metadata[key].encode(), chance).decode()
    else:
        tree = mutated(tree, chance)
    return json.dumps(tree).encode()


def _mutated_bytes(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.randrange(1, 4)):
        # what describes the rest is mostly at the ends
        limit = min(len(changed), chance.choice([64, 400, len(changed)])) or 1
        place = chance.randrange(limit) if chance.random() < 0.7 else max(len(changed) - 1 - chance.randrange(limit), 0)
        action = chance.random()
        if action < 0.5 and changed:
            changed[place] ^= 1 << chance.randrange(8)
        elif action < 0.7:
            changed[place:place] = chance.choice(BYTES)
        elif action < 0.85:
            del changed[place : place + chance.choice([1, 4, 100])]
        else:
            del changed[chance.randrange(len(changed) + 1) :]
    return bytes(changed)
