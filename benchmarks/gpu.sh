#!/usr/bin/env bash
# Everything that only a GPU can show, in stages of a few minutes each:
#
#     benchmarks/gpu.sh test        the kernels against float64, as programs (tests/simt) and as operators (tests/ops)
#     benchmarks/gpu.sh sanitize    the programs under compute-sanitizer: memory, races, initialization, barriers
#     benchmarks/gpu.sh kernels     attention beside cuDNN's, flash and efficient attention; products beside torch's; rounding beside a copy
#
# It runs from a checkout whose libraries are built (python setup.py build_ext --inplace) or carried there; nvcc compiles the
# programs on the spot, and nothing is downloaded. Each stage goes on where it was interrupted: `test` with what failed last,
# `sanitize` with the next tool, `kernels` with the next row. Results: benchmarks/results/kernels-GPU.json and .md.
#
# Without a GPU this is a dry run: the same commands, on the CPU, over what can run there.
set -Eeuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stages="test sanitize kernels"
if [[ $# -ne 1 || " $stages " != *" $1 "* ]]; then
    printf 'usage: benchmarks/gpu.sh STAGE, one of: %s\n' "$stages" >&2
    exit 2
fi

export VITFAST_CUDA_KERNELS=all
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
done_folder=".cache/gpu"
mkdir -p "$done_folder"

gpu="$(python -c 'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "")')"
if [[ -z "$gpu" ]]; then
    printf 'no GPU: a dry run\n'
fi

run_test() {
    if [[ -z "$gpu" ]]; then
        python -m pytest -q --collect-only -m cuda tests/simt tests/ops
        return
    fi
    python -m pytest -q -m cuda --last-failed --last-failed-no-failures all tests/simt tests/ops
}

run_sanitize() {
    local tool
    for tool in memcheck racecheck initcheck synccheck; do
        if [[ -z "$gpu" ]]; then
            printf 'would run: compute-sanitizer --tool %s over tests/simt\n' "$tool"
            continue
        fi
        if [[ -e "$done_folder/sanitize-$tool" ]]; then
            printf '%s: done before; delete %s to repeat it\n' "$tool" "$done_folder/sanitize-$tool"
            continue
        fi
        printf '\n=== compute-sanitizer %s\n' "$tool"
        VITFAST_SIMT_WRAPPER="compute-sanitizer --tool $tool --error-exitcode 9" \
            python -m pytest -q -m cuda tests/simt
        touch "$done_folder/sanitize-$tool"
    done
}

run_kernels() {
    local device="cuda" name results
    name="$(tr '[:upper:] ' '[:lower:]-' <<<"$gpu")"
    results="benchmarks/results/kernels-$name.json"
    local -a options=("batch=32,256" "precision=fp32,fp16,bf16" "seconds=240")
    if [[ -z "$gpu" ]]; then
        device="cpu"
        results="$done_folder/dry-run.json"
        options=("model=vit_tiny_patch16_224" "batch=1" "precision=fp32,bf16" "seconds=2")
        rm -f "$results"
    fi
    python benchmarks/operators.py "device=$device" "${options[@]}" resume=true "json=$results"
}

"run_$1"
