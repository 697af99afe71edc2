#!/usr/bin/env bash
# Every GPU figure of docs/GPU.md, one part after the other: benchmarks/gpu_all.sh MODEL OUT
# A part that fails or takes longer than its limit is told and the next one begins; logs and results go to OUT.
set -u
if [ $# -ne 2 ]; then echo "usage: benchmarks/gpu_all.sh MODEL OUT (a 4-bit or 16-bit model folder or hub name, a folder)" >&2; exit 2; fi
model=$1; out=$(realpath -m -- "$2"); failed=0
if [ -d "$model" ]; then model=$(realpath -- "$model"); fi
cd "$(dirname "$0")/.." && mkdir -p "$out" || exit 1
python=$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)

part() { # part NAME SECONDS COMMAND...
  local name=$1 limit=$2 begin=$SECONDS; shift 2
  if timeout -k 20 "$limit" "$@" > "$out/$name.log" 2>&1; then echo "$name: done in $((SECONDS - begin)) s"
  else echo "$name: FAILED after $((SECONDS - begin)) s, see $out/$name.log"; failed=1; fi
}

cat > "$out/parameters.yaml" <<YAML
NUM_EVAL_TASKS: 32
SFT_MAX_STEPS: 4
GRPO_MAX_STEPS: 2
SETTINGS: {grpo.max_completion_length: 128, evaluation.max_new_tokens: 128, sft.logging_steps: 1, grpo.eval_steps: 1, grpo.num_eval_tasks: 16}
YAML
part tests 300 "$python" -m pytest tests/test_gpu.py -q
part notebook 1500 "$python" -m papermill gpt_oss_20b_tau_bench_rl_training.ipynb "$out/notebook.ipynb" -f "$out/parameters.yaml" -r MODEL_NAME "$model" -r OUTPUT_DIR "$out/run" --no-progress-bar
part export 900 "$python" train_script.py export --model "$out/run/final_model" --format mxfp4 --output "$out/mxfp4_model"
part resume 2750 "$python" benchmarks/kill_and_resume.py --model "$model" --output "$out/gpu_resume.json" --run-dir "$out/resume"
part rollouts 1500 "$python" benchmarks/gpu_rollouts.py --model "$model" --output "$out/gpu_rollouts.json"
part agent 900 "$python" benchmarks/gpu_agent.py --model "$model" --output "$out/gpu_agent.json"
part presets 1500 "$python" benchmarks/gpu_presets.py --model "$model" --output "$out/gpu_presets.json" --timeout-s 1400 --work-dir "$out/presets"
if [ "$(nvidia-smi -L | wc -l)" -ge 2 ]; then
  part scaling 2400 "$python" benchmarks/scaling.py --model "$model" --gpus 1,2 --timeout-s 1000 --output "$out/scaling.json" --work-dir "$out/scaling"
fi
exit $failed
