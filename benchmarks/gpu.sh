#!/usr/bin/env bash
# Validates and measures vitfast on a GPU, in stages of a few minutes each:
#
#     benchmarks/gpu.sh test        the kernels against float64, as programs (tests/simt) and as operators (tests/ops), and
#                                   accelerated models (tests/inference)
#     benchmarks/gpu.sh sanitize    the programs under compute-sanitizer: memory, races, initialization, barriers
#     benchmarks/gpu.sh kernels     every operator with a CUDA kernel, compared with torch: attention also with the cuDNN,
#                                   flash and efficient backends (197 and 577 tokens, up to 128 channels per head)
#     benchmarks/gpu.sh models      accelerated models compared with timm's, eager and compiled, and early exit
#     benchmarks/gpu.sh training    training steps compared with timm's, and the loss curve compared with torch's operators
#
# It runs from a checkout with built libraries (python setup.py build_ext --inplace, or copied); nvcc compiles the programs,
# and nothing is downloaded. Each stage ends within ten minutes and continues where it stopped: `test` with the tests that
# failed last, `sanitize` with the next tool, the others with the next row; `models` takes several calls and reports how many
# rows are left. Results: benchmarks/results/STAGE-GPU.json and .md; every row has its shares of the copy bandwidth and of
# the GEMM rate, measured in the same rounds.
#
# Without a GPU this is a dry run: the same commands on the CPU with small models.
set -Eeuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

stages="test sanitize kernels models training"
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

# is_done NAME: whether a part of a stage has passed before
is_done() {
    if [[ -e "$done_folder/$1" ]]; then
        printf '%s: done before; delete %s to repeat it\n' "$1" "$done_folder/$1"
        return 0
    fi
    return 1
}

run_test() {
    local part
    if [[ -z "$gpu" ]]; then
        python -m pytest -q --collect-only -m cuda tests/simt tests/ops tests/inference
        return
    fi
    for part in simt ops inference; do
        if is_done "test-$part"; then
            continue
        fi
        python -m pytest -q -m cuda --last-failed --last-failed-no-failures all "tests/$part"
        touch "$done_folder/test-$part"
    done
}

run_sanitize() {
    local tool
    for tool in memcheck racecheck initcheck synccheck; do
        if [[ -z "$gpu" ]]; then
            printf 'would run: compute-sanitizer --tool %s over tests/simt\n' "$tool"
            continue
        fi
        if is_done "sanitize-$tool"; then
            continue
        fi
        printf '\n=== compute-sanitizer %s\n' "$tool"
        VITFAST_SIMT_WRAPPER="compute-sanitizer --tool $tool --error-exitcode 9" \
            python -m pytest -q -m cuda tests/simt
        touch "$done_folder/sanitize-$tool"
    done
}

# results_file NAME: the file for the results; a dry run starts with an empty one
results_file() {
    if [[ -z "$gpu" ]]; then
        rm -f "$done_folder/dry-run-$1.json"
        printf '%s\n' "$done_folder/dry-run-$1.json"
        return
    fi
    printf 'benchmarks/results/%s-%s.json\n' "$1" "$(tr '[:upper:] ' '[:lower:]-' <<<"$gpu")"
}

# measure_operators key=value …: continues with the next call if results disagree
measure_operators() {
    python benchmarks/operators.py limits=true resume=true "$@" || failed=1
}

run_kernels() {
    local results failed=0
    results="$(results_file kernels)"
    local -a options=("json=$results")
    if [[ -z "$gpu" ]]; then
        options+=("device=cpu" "precision=fp32,bf16" "batch=1" "seconds=1")
        measure_operators "${options[@]}" model=vit_tiny_patch16_224
        measure_operators "${options[@]}" model=vit_nano_patch2_8 operator=mlp,upsample_relations backward=true
        measure_operators "${options[@]}" model=vit_nano_patch2_8 operator=attention heads=1 backward=true
        return "$failed"
    fi
    options+=("device=cuda")
    measure_operators "${options[@]}" batch=32,256 precision=fp32,fp16,bf16 seconds=200 stop_after=220
    measure_operators "${options[@]}" batch=256 precision=fp16,bf16 backward=true seconds=120 stop_after=130
    measure_operators "${options[@]}" batch=256 precision=fp32 backward=true operator=attention_packed seconds=20 stop_after=30
    options+=("operator=attention,attention_packed" "batch=64" "precision=fp16,bf16" "seconds=15" "stop_after=50")
    # 577 tokens: K and V are streamed in tiles
    measure_operators "${options[@]}" model=vit_base_patch16_384
    measure_operators "${options[@]}" model=vit_base_patch16_384 backward=true
    # 128 channels per head, with 197 and 577 tokens
    options+=("model=vit_base_patch16_224,vit_base_patch16_384" "heads=6")
    measure_operators "${options[@]}"
    measure_operators "${options[@]}" backward=true
    return "$failed"
}

run_models() {
    local results
    results="$(results_file models)"
    if [[ -z "$gpu" ]]; then
        python benchmarks/accelerated.py device=cpu model=vit_nano_patch2_8,dvt_nano_16 batch=2 precision=bf16 compile=none \
            seconds=1 resume=true "json=$results"
        return
    fi
    # building and compiling a row takes one or two minutes; no row begins if the longest one so far would not fit
    python benchmarks/accelerated.py device=cuda seconds=300 stop_after=480 resume=true "json=$results"
}

run_training() {
    local results curve
    results="$(results_file training)"
    curve="$(results_file loss_curve)"
    if [[ -z "$gpu" ]]; then
        python benchmarks/training_step.py device=cpu model=vit_nano_patch2_8 batch=2 precision=bf16 libraries=timm limits=true \
            seconds=1 resume=true "json=$results"
        python benchmarks/loss_curve.py device=cpu model=vit_nano_patch2_8 steps=12 batch=8 resume=true "json=$curve"
        return
    fi
    python benchmarks/loss_curve.py device=cuda resume=true "json=$curve"
    python benchmarks/training_step.py device=cuda batch=64,256 precision=bf16 compile=true libraries=timm limits=true \
        model=vit_small_patch16_224,vit_base_patch16_224,vit_tiny_patch16_224 seconds=120 stop_after=360 resume=true \
        "json=$results"
}

"run_$1"
