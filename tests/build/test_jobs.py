from __future__ import annotations

from pathlib import Path

import pytest

from vitfast_build.native_build import GIB, Jobs, choose_jobs, free_memory


@pytest.mark.parametrize(
    ("max_jobs", "cores", "memory_gib", "expected"),
    [
        (None, 2, 64, Jobs(2, 2)),
        (None, 64, 12, Jobs(8, 3)),  # 12 GiB: 8 C++ compilers of 1.5, 3 nvcc of 4
        (4, 64, 256, Jobs(4, 4)),
        (16, 2, 256, Jobs(2, 2)),
        (None, 8, 0.5, Jobs(1, 1)),
    ],
)
def test_cores_memory_and_max_jobs_all_limit(
    max_jobs: int | None, cores: int, memory_gib: float, expected: Jobs
) -> None:
    assert choose_jobs(max_jobs, cores, int(memory_gib * GIB)) == expected


def test_unknown_memory_does_not_limit() -> None:
    assert choose_jobs(None, 6, None) == Jobs(6, 6)


def test_the_container_limit_counts_where_it_is_less(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 99999999 kB\nMemAvailable:   8388608 kB\n")
    assert free_memory(tmp_path) == 8 * GIB
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "memory.current").write_text(f"{3 * GIB}\n")
    (group / "memory.max").write_text("max\n")
    assert free_memory(tmp_path) == 8 * GIB
    (group / "memory.max").write_text(f"{4 * GIB}\n")
    assert free_memory(tmp_path) == 1 * GIB
    (group / "memory.stat").write_text(f"anon 5\ninactive_file {GIB}\n")
    assert free_memory(tmp_path) == 2 * GIB


def test_this_machine_can_be_read() -> None:
    memory = free_memory()
    assert memory is not None
    assert memory > 0
