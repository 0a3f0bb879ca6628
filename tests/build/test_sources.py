from __future__ import annotations

from pathlib import Path

import pytest

from vitfast_build.options import BuildError, parse_architectures
from vitfast_build.sources import ISA_FLAGS, OPERATOR_FLAGS, Source, find_sources


def test_every_source_goes_into_exactly_one_artefact(root: Path) -> None:
    sources = find_sources(root, x86=True)
    everything = [source for group in (sources.cpu, sources.cuda) for source in group]
    assert len({source.path for source in everything}) == len(everything)
    assigned = {source.path for source in everything} | {"csrc/module.cpp"}
    there = [path.relative_to(root).as_posix() for path in (root / "csrc").rglob("*") if path.suffix in (".cpp", ".cu")]
    assert sorted(assigned) == sorted(there)


def test_each_instruction_set_has_its_own_flags_and_operators_have_others(root: Path) -> None:
    sources = find_sources(root, x86=True)
    assert sources.instruction_sets == tuple(ISA_FLAGS)
    for source in sources.cpu:
        path = Path(source.path)
        assert source.flags == (ISA_FLAGS[path.stem] if path.parent.name == "isa" else OPERATOR_FLAGS)


def test_other_processors_get_the_portable_code_only(root: Path) -> None:
    sources = find_sources(root, x86=False)
    assert sources.instruction_sets == ("baseline",)
    assert {source.flags for source in sources.cpu} == {ISA_FLAGS["baseline"], OPERATOR_FLAGS}


def test_incomplete_sources_and_unknown_instruction_sets_are_errors(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"has no csrc/library\.cpp"):
        find_sources(tmp_path, x86=True)
    isa = tmp_path / "csrc/cpu/isa"
    isa.mkdir(parents=True)
    (tmp_path / "csrc/library.cpp").touch()
    (isa / "avx10.cpp").touch()
    with pytest.raises(BuildError, match="add 'avx10' to ISA_FLAGS"):
        find_sources(tmp_path, x86=True)


def test_the_name_of_a_cuda_file_may_choose_its_architectures() -> None:
    architectures, _ = parse_architectures("8.0+PTX;9.0;9.0a")
    found = {
        name: [str(item) for item in Source(f"csrc/linear/{name}").select_architectures(architectures)]
        for name in ("gemm_half_sm90a.cu", "gemm_sm80.cu", "epilogue_gradient.cu")
    }
    assert found == {
        "gemm_half_sm90a.cu": ["9.0a"],
        "gemm_sm80.cu": ["8.0+PTX", "9.0"],
        "epilogue_gradient.cu": ["8.0+PTX", "9.0", "9.0a"],
    }


def test_gemms_come_first_because_they_take_longest(root: Path) -> None:
    first = [Path(source.path).name for source in find_sources(root, x86=True).cuda[:3]]
    assert first == ["gemm_bfloat16_sm90a.cu", "gemm_half_sm90a.cu", "gemm_sm80.cu"]


def test_only_kernels_need_nvcc(root: Path) -> None:
    for source in find_sources(root, x86=True).cuda:
        assert source.needs_nvcc == (source.path.endswith(".cu"))
        text = (root / source.path).read_text()
        assert source.needs_nvcc or ("STABLE_TORCH_LIBRARY_IMPL" in text and ".cuh" not in text)
