#!/bin/bash
# Train the small model, measure it and one of random weights. Everything that is found goes to OUT.
#   benchmarks/small_moe/run.sh OUT                            one GPU, or two: more topologies
#   DEVICE=cpu TRAIN="--tiny --seconds 20" MEASURE="--count 4 --seeds 1" benchmarks/small_moe/run.sh OUT
# The random model is measured while the other one trains. PYTHON, WORK, VLLM and
# TOPOLOGIES can be set, and ONLY_TRAINED leaves the random model out; a part that fails leaves the others' results.
set -u
cd "$(dirname "$0")/../.."
out=$1 work=${WORK:-/tmp/small-moe} python=${PYTHON:-python3} device=${DEVICE:-cuda}
mkdir -p "$out" "$work"
begin=$SECONDS
: >"$out/train.log"
say() { echo "[run $((SECONDS - begin)) s] $*"; }

gpus=1
vllm=${VLLM-}
if [ "$device" = cuda ]; then
  gpus=$($python -c 'import torch; print(torch.cuda.device_count())')
  # A fixed cache: vLLM's own measuring of free memory fails beside a program that trains.
  vllm=${VLLM---max-model-len 2048 --max-num-seqs 64 --max-num-batched-tokens 4096 --gpu-memory-utilization 0.2 --kv-cache-memory-bytes 4294967296 --attention-backend FLASH_ATTN}
fi
topologies=${TOPOLOGIES:-1}
if [ "$gpus" -ge 2 ]; then topologies=${TOPOLOGIES:-1 tp2 ep2 pp2 tp2-ep2}; fi
say "$gpus GPUs; topologies $topologies"

measure() { # NAME TOPOLOGIES
  # shellcheck disable=SC2086 # words are meant
  $python benchmarks/small_moe/measure.py --device "$device" --model "$1=$work/$1" --prompts "$work/$1/held_out.jsonl" \
    --topologies $2 --vllm "$vllm" --work "$work/run" --out "$out/$1.json" ${MEASURE-} >"$out/measure-$1.log" 2>&1
  local status=$?
  gzip -c "$work/run/$1/vllm.log" >"$out/vllm-$1.log.gz" 2>/dev/null
  say "$1 measured, status $status"
  grep -v -i warn "$out/measure-$1.log" | tail -40
  return $status
}

# shellcheck disable=SC2086
TOKENIZERS_PARALLELISM=true $python benchmarks/small_moe/train.py "$work/trained" --random "$work/random" \
  --device "${device/cuda/cuda:0}" ${TRAIN-} >"$out/train.log" 2>&1 &
training=$!
while kill -0 $training 2>/dev/null && ! grep -q 'random weights written' "$out/train.log"; do sleep 1; done
say "text and random weights are there"
if [ -f "$work/random/config.json" ] && [ -z "${ONLY_TRAINED-}" ]; then
  if [ "$gpus" -ge 2 ]; then export CUDA_VISIBLE_DEVICES=1; fi
  measure random 1 &
  random=$!
  unset CUDA_VISIBLE_DEVICES
fi
status=0
wait $training || status=$?
say "trained, status $status"
grep -v -i writing "$out/train.log" | tail -8
if [ $status = 0 ]; then measure trained "$topologies" || status=$?; fi
if [ -n "${random-}" ]; then wait "$random" || status=$?; fi
say "done, status $status"
exit $status
