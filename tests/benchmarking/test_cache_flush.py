from __future__ import annotations

import torch

from vitfast.benchmarking.cache_flush import CacheFlush, cache_sizes, last_level_cache_bytes


def write_cache(folder, index, kind, level, size):
    entry = folder / f"index{index}"
    entry.mkdir()
    for name, value in (("type", kind), ("level", level), ("size", size)):
        (entry / name).write_text(f"{value}\n")


def test_data_caches_are_read_with_their_units(tmp_path):
    write_cache(tmp_path, 0, "Data", 1, "48K")
    write_cache(tmp_path, 1, "Instruction", 1, "32K")
    write_cache(tmp_path, 2, "Unified", 2, "2048K")
    write_cache(tmp_path, 3, "Unified", 3, "36M")
    assert cache_sizes(tmp_path) == {"L1": 48 * 2**10, "L2": 2 * 2**20, "L3": 36 * 2**20}
    assert last_level_cache_bytes(tmp_path) == 36 * 2**20


def test_a_system_that_does_not_tell_has_a_default(tmp_path):
    (tmp_path / "index0").mkdir()
    assert cache_sizes(tmp_path) == {}
    assert last_level_cache_bytes(tmp_path) == 64 * 2**20


def test_the_whole_buffer_is_written():
    flush = CacheFlush(torch.device("cpu"), size_bytes=80)
    flush()
    flush()
    assert flush._buffer.tolist() == [2] * 10
