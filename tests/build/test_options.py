from __future__ import annotations

import pytest

from vitfast_build.commands import build_summary, describe_build
from vitfast_build.options import BuildError, BuildOptions, CudaArchitecture, parse_architectures


def test_an_empty_environment_takes_the_defaults() -> None:
    options = BuildOptions.from_environment({})
    assert (options.cuda, options.build, options.max_jobs, options.sanitize) == ("auto", "all", None, False)
    assert options.architectures == ()  # those of the visible GPUs, or both defaults


def test_an_empty_variable_counts_as_unset() -> None:
    variables = ("VITFAST_CUDA", "VITFAST_BUILD", "VITFAST_LIBRARIES", "VITFAST_SANITIZE", "MAX_JOBS")
    empty = dict.fromkeys((*variables, "TORCH_CUDA_ARCH_LIST"), "")
    assert BuildOptions.from_environment(empty) == BuildOptions.from_environment({})


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("VITFAST_CUDA", "yes", "auto, 1, 0"),
        ("VITFAST_BUILD", "cpu", "all, none"),
        ("VITFAST_SANITIZE", "address", "0, 1"),
        ("VITFAST_LIBRARIES", "libraries", "no absolute path"),
        ("MAX_JOBS", "0", "positive number"),
        ("MAX_JOBS", "-2", "positive number"),
        ("MAX_JOBS", "two", "positive number"),
        ("TORCH_CUDA_ARCH_LIST", "Hopper", "such as 8.0, 8.9+PTX or 9.0a"),
        ("TORCH_CUDA_ARCH_LIST", "9.0a;sm_90", "such as 8.0, 8.9+PTX or 9.0a"),
    ],
)
def test_a_bad_value_names_the_variable_the_value_what_is_allowed_and_a_command(
    variable: str, value: str, allowed: str
) -> None:
    with pytest.raises(BuildError) as caught:
        BuildOptions.from_environment({variable: value})
    message = str(caught.value)
    assert f"{variable}={value!r}" in message
    assert allowed in message
    assert "export" in message


@pytest.mark.parametrize("variable", ["VITFAST_CUDA", "VITFAST_SANITIZE"])
def test_what_needs_kernels_is_an_error_where_none_are_built(variable: str) -> None:
    with pytest.raises(BuildError, match=f"{variable}=1 (.|\n)*unset VITFAST_BUILD, or unset {variable}"):
        BuildOptions.from_environment({"VITFAST_BUILD": "none", variable: "1"})
    with pytest.raises(BuildError, match=f"{variable}=1 .* this is darwin\\.\n.*: unset {variable}"):
        BuildOptions.from_environment({variable: "1"}, "darwin")


def test_sanitizers_are_for_the_cpu_library() -> None:
    assert BuildOptions.from_environment({"VITFAST_SANITIZE": "1"}).sanitize
    with pytest.raises(BuildError, match="unset VITFAST_SANITIZE, or unset VITFAST_CUDA"):
        BuildOptions.from_environment({"VITFAST_SANITIZE": "1", "VITFAST_CUDA": "1"})


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_systems_than_linux_get_pure_pytorch(system: str) -> None:
    options = BuildOptions.from_environment({}, system)
    assert options.build == "none"
    assert build_summary(describe_build(options, None)) == (
        f"vitfast: pure PyTorch, nothing compiled (the kernels need Linux, and this is {system}): correct, but slow"
    )
    assert BuildOptions.from_environment({}, "linux").build == "all"


@pytest.mark.parametrize("text", ["8.0+PTX;9.0a", "8.0+PTX 9.0a", " 8.0+PTX, 9.0a ", "8.0+PTX;9.0a;9.0a"])
def test_architectures_are_separated_by_semicolons_spaces_or_commas(text: str) -> None:
    supported, left_out = parse_architectures(text)
    assert supported == (CudaArchitecture(8, 0, "", True), CudaArchitecture(9, 0, "a"))
    assert left_out == ()


def test_architectures_below_8_are_skipped_with_a_note() -> None:
    supported, left_out = parse_architectures("7.5 8.6 12.0+PTX")
    assert [str(item) for item in supported] == ["8.6", "12.0+PTX"]
    assert [str(item) for item in left_out] == ["7.5"]
    with pytest.raises(BuildError, match=r"names no architecture from 8\.0"):
        parse_architectures("7.0;7.5")


def test_nvcc_flags_have_sass_and_ptx_only_if_requested() -> None:
    assert CudaArchitecture(9, 0, "a").nvcc_flags == ["-gencode=arch=compute_90a,code=sm_90a"]
    assert CudaArchitecture(8, 0, "", True).nvcc_flags == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_80,code=compute_80",
    ]
