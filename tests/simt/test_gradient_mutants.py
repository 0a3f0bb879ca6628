"""Faults planted in the sums and gradients of the products' backward are found, and by what is recorded."""

from __future__ import annotations

from support.simt_epilogue_gradient import random_epilogue_gradient
from support.simt_gemm_gradient import random_gradient
from support.simt_mutants import faults_test, mutant

SUMS = "csrc/linear/column_sums.cuh"
KERNEL = "csrc/linear/epilogue_gradient_kernel.cuh"
EPILOGUE = "csrc/linear/gemm_epilogue.cuh"
GELU = "csrc/linear/gelu.cuh"

OF_BFLOAT16 = ("SIMT_TYPE=vitfast::BFloat16",)

PRODUCT_MUTANTS = (
    mutant("no mask of rows", SUMS, "rows_left > 0 ?", "true ?", "results"),
    mutant("no mask of the second rows", SUMS, "rows_left > 8 ?", "rows_left > 0 ?", "results"),
    mutant("one row too few", SUMS, "rows_left > 8 ?", "rows_left > 9 ?", "results"),
    mutant("column of another tile", SUMS, "kept_column / 2 * 8", "kept_column % 4 * 8", "results", "race"),
    mutant("half given away", SUMS, "? columns[i] : columns[i + half]", "? columns[i + half] : columns[i]", "results"),
    mutant("a group left out", SUMS, "int group = 0;", "int group = 1;", "results"),
    mutant("GELU, not its derivative", EPILOGUE, "gelu_erf_derivative<T>(", "gelu_erf<T>(", "results"),
    mutant("derivative without its slope", GELU, "gate + y * gate * (1.0f - gate) * slope", "gate", "results"),
    mutant("derivative not mirrored", GELU, "x < 0.0f ? below_zero : 1.0f - below_zero", "below_zero", "results"),
)

KERNEL_MUTANTS = (
    mutant(
        "no barrier before warps are added up",
        KERNEL,
        "  sync_threads();\n  const int column",
        "  const int column",
        "results",
        "race",
        "uninitialized",
    ),
    mutant(
        "no barrier before the scratch is used again",
        KERNEL,
        "sync_threads();  // the scratch",
        "// the scratch",
        "results",
        "race",
    ),
    mutant("rows of the next chunk", KERNEL, "end < a.rows ? end : a.rows", "a.rows", "results"),
    mutant("row N read", KERNEL, "row < last;", "row <= last;", "results", "address", "runtime"),
    mutant(
        "columns behind the last one",
        KERNEL,
        "if (column < columns_left)",
        "if (true)",
        "address",
        "runtime",
    ),
    mutant("scale's sums of the argument", KERNEL, "value = gelu_erf<T>(sum[i])", "value = sum[i]", "results"),
    mutant("bias before the scale", KERNEL, "gradient[i] *= scale[i] * slope;", "gradient[i] *= slope;", "results"),
)


def product_cases() -> list:
    """Calls on which every mutant of the product's epilogue shows."""
    return [random_gradient(140, 72), random_gradient(129, 40, activation="gelu_tanh")]


def kernel_cases() -> list:
    """Calls on which every mutant of the kernel shows."""
    return [random_epilogue_gradient(70, 264), random_epilogue_gradient(33, 40, "bias")]


test_a_fault_in_the_products_epilogue_is_found = faults_test(
    "gemm_gradient", product_cases, PRODUCT_MUTANTS, OF_BFLOAT16
)
test_a_fault_in_the_kernel_is_found = faults_test("epilogue_gradient", kernel_cases, KERNEL_MUTANTS, OF_BFLOAT16)
