#!/usr/bin/env bash
# Validates and measures vitfast on a GPU:
#
#     benchmarks/gpu.sh [STAGE…]
#
#     verify      python -m vitfast.verify: every kernel against float64, then timed by replaying CUDA graphs
#     test        the kernels as operators (tests/ops), as programs (tests/simt) and in accelerated models (tests/inference)
#     kernels     every operator with a CUDA kernel, compared with torch: attention also with the cuDNN, flash and
#                 efficient backends
#     models      accelerated models compared with timm's, eager and compiled, and early exit
#     training    training steps compared with timm's, and the loss curve compared with torch's operators
#     sanitize    twenty of the programs under compute-sanitizer: memory, races, initialization, barriers
#
# Without a stage all run, in this order. It runs from a checkout with built libraries and downloads nothing. A call ends
# within LIMIT_S seconds (580); a part that fails does not end the rest, and what is left is named: the same call again
# continues. Results (STAGE-GPU.json and .md), logs and stamps of finished parts go to OUT (.cache/gpu); a part that has a
# stamp, NAME.done, is not repeated. PYTHON (python3) needs torch, timm and pytest, and the packages of README.md in
# .cache/gpu/packages. nvcc and compute-sanitizer are used where they are.
#
# Without a GPU this is a dry run: every part starts, on the CPU with small models.
set -Euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

all_stages="verify test kernels models training sanitize"
for stage in "$@"; do
    if [[ " $all_stages " != *" $stage "* ]]; then
        printf 'usage: benchmarks/gpu.sh [STAGE…], of: %s\n' "$all_stages" >&2
        exit 2
    fi
done

python="${PYTHON:-python3}"
out="$(realpath -m "${OUT:-.cache/gpu}")"
limit_s="${LIMIT_S:-580}"
export VITFAST_CUDA_KERNELS=all
export PYTHONPATH="$PWD:$PWD/.cache/gpu/packages${PYTHONPATH:+:$PYTHONPATH}"
export XDG_CACHE_HOME="$out" # the record of verify
mkdir -p "$out"
failed=()
unfinished=()

missing="$("$python" -c '
from importlib.util import find_spec
print(*(name for name in "torch torchvision timm pytest numpy omegaconf safetensors tqdm".split() if not find_spec(name)))')"
if [[ -n "$missing" ]]; then
    printf 'missing packages: %s. Put them into .cache/gpu/packages, as benchmarks/README.md shows\n' "$missing" >&2
    exit 2
fi
gpu="$("$python" -c 'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "")')"
gpu_name="$(tr '[:upper:] ' '[:lower:]-' <<<"${gpu:-dry-run}")"
workers=()
if [[ -n "$gpu" ]] && "$python" -c 'import xdist' 2>"$out/xdist.log"; then
    workers=(-n 12)
fi

# part NAME COMMAND…: runs a part of a stage, unless it has passed before or no time is left
part() {
    local name="$1" left=$((limit_s - SECONDS)) code=0
    shift
    if [[ -n "$gpu" && -e "$out/$name.done" ]]; then
        printf '%s: done before; delete %s to repeat it\n' "$name" "$out/$name.done"
        return
    fi
    if ((left < 30)); then
        unfinished+=("$name")
        return
    fi
    printf '\n=== %s\n' "$name"
    timeout --kill-after=10 "$left" "$@" 2>&1 | tee "$out/$name.log" || code=$?
    if ((code == 124 || code == 137)) || grep -q 'tables are left; resume=true' "$out/$name.log"; then
        unfinished+=("$name")
    elif ((code != 0)); then
        failed+=("$name")
    elif [[ -n "$gpu" ]]; then
        touch "$out/$name.done"
    fi
}

# measure NAME RESULT SCRIPT key=value…: a part that writes RESULT-GPU.json and continues with the rows it lacks
measure() {
    local name="$1" results="$out/$2-$gpu_name.json" script="benchmarks/$3.py"
    shift 3
    if [[ -z "$gpu" ]]; then
        rm -f "$results"
    fi
    part "$name" "$python" "$script" resume=true stop_after=$((limit_s > SECONDS + 90 ? limit_s - SECONDS - 90 : 1)) \
        "json=$results" "$@"
}

run_verify() {
    if [[ -z "$gpu" ]]; then
        # ends with exit code 2 where there is no GPU
        part verify bash -c "'$python' -m vitfast.verify; test \$? = 2"
        return
    fi
    part verify "$python" -m vitfast.verify
}

run_test() {
    local folder options=(-q -m "cuda and not slow" --continue-on-collection-errors "${workers[@]}")
    if [[ -z "$gpu" ]]; then
        options+=(--collect-only -q)
    fi
    for folder in ops simt inference; do
        part "test-$folder" "$python" -m pytest "${options[@]}" "tests/$folder"
    done
}

run_kernels() {
    if [[ -z "$gpu" ]]; then
        local -a dry=(operators device=cpu precision=fp32,bf16 batch=1 seconds=1)
        measure kernels kernels "${dry[@]}" limits=true model=vit_tiny_patch16_224
        measure kernels-backward kernels-backward "${dry[@]}" model=vit_nano_patch2_8 operator=mlp,upsample_relations backward=true
        return
    fi
    local -a all=(kernels operators limits=true device=cuda)
    measure kernels-base "${all[@]}" model=vit_base_patch16_224 batch=256 precision=bf16,fp16 seconds=60
    measure kernels-base-backward "${all[@]}" model=vit_base_patch16_224 batch=256 precision=bf16,fp16 backward=true seconds=60
    measure kernels-others "${all[@]}" batch=32,256 precision=bf16,fp16,fp32 seconds=120
    measure kernels-others-backward "${all[@]}" batch=256 precision=bf16,fp16 backward=true seconds=60
}

run_models() {
    if [[ -z "$gpu" ]]; then
        measure models models accelerated device=cpu model=vit_nano_patch2_8,dvt_nano_16 batch=2 precision=bf16 compile=none \
            seconds=1
        return
    fi
    # ViT-B first; max-autotune would spend the time in the compiler
    measure models models accelerated device=cuda compile=default seconds=300
}

run_training() {
    if [[ -z "$gpu" ]]; then
        measure training training training_step device=cpu model=vit_nano_patch2_8 batch=2 precision=bf16 libraries=timm \
            limits=true seconds=1
        part loss-curve "$python" benchmarks/loss_curve.py device=cpu model=vit_nano_patch2_8 steps=12 batch=8
        return
    fi
    measure training training training_step device=cuda batch=256,64 precision=bf16 compile=true libraries=timm limits=true \
        model=vit_base_patch16_224,vit_small_patch16_224,vit_tiny_patch16_224 seconds=120
    part loss-curve "$python" benchmarks/loss_curve.py device=cuda "json=$out/loss_curve-$gpu_name.json"
}

run_sanitize() {
    local tool
    local -a tests
    # every n-th test, so that all kernels are among them
    mapfile -t tests < <("$python" -m pytest -q -m cuda --collect-only tests/simt | grep :: |
        awk '{ all[NR] = $0 } END { step = NR < 20 ? 1 : NR / 20; for (i = 1; i <= NR; i += step) print all[int(i)] }')
    for tool in memcheck racecheck initcheck synccheck; do
        if [[ -z "$gpu" ]]; then
            printf 'would run: compute-sanitizer --tool %s over %d tests\n' "$tool" "${#tests[@]}"
            continue
        fi
        VITFAST_SIMT_WRAPPER="compute-sanitizer --tool $tool --error-exitcode 9" \
            part "sanitize-$tool" "$python" -m pytest -q -m cuda "${workers[@]}" "${tests[@]}"
    done
}

for stage in ${*:-$all_stages}; do
    "run_$stage"
done

printf '\n'
if [[ -z "$gpu" ]]; then
    printf 'no GPU: this was a dry run on the CPU, and nothing was measured\n'
fi
if ((${#unfinished[@]})); then
    printf 'not finished: %s. Call it again\n' "${unfinished[*]}"
fi
if ((${#failed[@]})); then
    printf 'failed: %s. Logs: %s/NAME.log\n' "${failed[*]}" "$out"
    exit 1
fi
