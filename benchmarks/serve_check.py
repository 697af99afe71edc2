"""Check that what we export is served as we compute it: vLLM in process, `vllm serve`, llama.cpp.

    python benchmarks/serve_check.py --adapter RUN/final_model --work outputs/serve_check \
        --output benchmarks/results/serving.json
    python benchmarks/serve_check.py --tokenizer TOKENIZER_DIR --work outputs/serve_check \
        --output benchmarks/results/serving.json
    python benchmarks/serve_check.py --adapter RUN/final_model --llama-cpp SOURCES --work WORK --output F

The first line checks forms of the small model: merged 16-bit, MXFP4, base with adapter, and the base
in MXFP4 with the adapter, which is what samples in GRPO. The second those of a narrow random GPT-OSS with the released tokenizer, whose chats with tools `vllm
serve` takes too: vLLM renders every GPT-OSS chat with the released vocabulary, so the small model
has none. The third makes a GGUF and needs no GPU, but the package llama-cpp-python. Each answer is
decoded greedily and compared with our own engine's on a CPU in float32: the share of equal texts,
and the mean difference of log-probabilities up to where two texts part. Several at a time: `--jobs`.
"""

import argparse
import dataclasses
import gc
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

import configs  # noqa: E402
from common.files import read_json, write_json_atomic  # noqa: E402
from data_reader import plan_prompt, read_tasks  # noqa: E402
from envs.retail import TOOL_SCHEMAS  # noqa: E402
from gptoss.export import export_model  # noqa: E402
from gptoss.generation import Completion, complete, split_batches  # noqa: E402
from gptoss.load import load_for_evaluation, load_model, save_adapter  # noqa: E402
from gptoss.vllm_engine import ENVIRONMENT, VERSION, VllmEngine  # noqa: E402

FORMS = ("merged", "mxfp4", "adapter", "mxfp4_adapter")
MAX_TOKENS = {"small": 300, "narrow": 48}
START_S = 400
"""Seconds that a server may take to start."""
SERVED = ["--dtype", "bfloat16", "--max-model-len", "2048", "--enforce-eager",
          "--gpu-memory-utilization", "0.05", "--kv-cache-memory-bytes", str(2**30),
          "--max-num-seqs", "32", "--max-logprobs", "1"]
ADAPTER = ["--enable-lora", "--max-loras", "1", "--max-lora-rank", "16"]


def cpu_stage(model: str) -> configs.ModelStage:
    """Return settings that load a model on the CPU in float32."""
    stage = configs.get_preset("cpu").model
    return dataclasses.replace(stage, model_name=model, sampling="fast", max_seq_length=2048)


def make_narrow(tokenizer_dir: Path, folder: Path) -> Path:
    """Write a random GPT-OSS of released shape but for its width, and an adapter; return the latter."""
    from transformers import AutoTokenizer, GptOssConfig, GptOssForCausalLM

    config = GptOssConfig(
        num_hidden_layers=4, hidden_size=256, intermediate_size=256, num_local_experts=8,
        num_attention_heads=8, num_key_value_heads=2, head_dim=64, num_experts_per_tok=4,
        vocab_size=201088, sliding_window=128, initializer_range=0.02, tie_word_embeddings=False,
        eos_token_id=200002, pad_token_id=199999,
        rope_parameters={
            "rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "beta_fast": 32.0,
            "beta_slow": 1.0, "truncate": False, "original_max_position_embeddings": 4096,
        },
    )
    torch.manual_seed(0)
    model = GptOssForCausalLM(config).to(torch.bfloat16)
    with torch.no_grad():
        model.lm_head.weight.mul_(50)  # likeliest tokens that rounding does not change
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = [200002, 200012], 199999
    model.save_pretrained(folder / "base")
    AutoTokenizer.from_pretrained(tokenizer_dir).save_pretrained(folder / "base")
    del model
    trained, tokenizer = load_model(cpu_stage(str(folder / "base")))
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.002)
    return save_adapter(trained, tokenizer, folder / "adapter")


def make_forms(adapter: Path, folder: Path) -> dict[str, Path]:
    """Export the model of an adapter; return each form's folder."""
    settings = read_json(adapter / "adapter_config.json", {})
    base = settings["base_model_name_or_path"]
    model, tokenizer = load_for_evaluation(base, cpu_stage(base))
    export_model(model, tokenizer, folder / "base_mxfp4", cpu_stage(base), "mxfp4")
    shutil.copytree(adapter, folder / "mxfp4_adapter", dirs_exist_ok=True)
    settings["base_model_name_or_path"] = str(folder / "base_mxfp4")
    write_json_atomic(folder / "mxfp4_adapter" / "adapter_config.json", settings)
    model, tokenizer = load_for_evaluation(str(adapter), cpu_stage(str(adapter)))
    stage = cpu_stage(str(adapter))
    for form, export_format in (("merged", "16bit"), ("mxfp4", "mxfp4")):
        export_model(model, tokenizer, folder / form, stage, export_format)
    return {form: folder / form for form in FORMS} | {"adapter": adapter}


def base_of(folder: Path) -> tuple[str, str]:
    """Return what vLLM loads for a form, and the adapter's folder or ""."""
    settings = read_json(folder / "adapter_config.json", {})
    return (settings["base_model_name_or_path"], str(folder)) if settings else (str(folder), "")


def our_answers(folder: Path, prompts: list[list[int]], max_tokens: int) -> list[Completion]:
    """Complete prompts greedily on the CPU."""
    model, _ = load_for_evaluation(str(folder), cpu_stage(str(folder)))
    found: dict[int, Completion] = {}
    for batch in split_batches([len(prompt) for prompt in prompts], 32):
        rows = complete(model, [prompts[index] for index in batch], max_tokens)
        found |= dict(zip(batch, rows, strict=True))
    return [found[index] for index in range(len(prompts))]


@torch.no_grad()
def our_log_probs(folder: Path, rows: list[tuple[list[int], list[int]]]) -> list[list[float]]:
    """Return our log-probabilities of given completions."""
    model, _ = load_for_evaluation(str(folder), cpu_stage(str(folder)))
    found = []
    for prompt, ids in rows:
        logits = model(input_ids=torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        found.append(logits.log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0].tolist())
    return found


def compare(theirs: list[Completion], ours: list[Completion]) -> dict[str, Any]:
    """Return the share of equal texts and the mean difference up to where two texts part."""
    differences = []
    for a, b in zip(theirs, ours, strict=True):
        pairs = zip(a.ids, b.ids, a.log_probs, b.log_probs, strict=False)
        for token_a, token_b, value_a, value_b in pairs:
            if token_a != token_b:
                break
            differences.append(abs(value_a - value_b))
    return {
        "same_text": fmean(a.ids == b.ids for a, b in zip(theirs, ours, strict=True)),
        "of": len(ours), "mean_abs_logprob_diff": fmean(differences) if differences else None,
    }


def run_child(path: str, spec: dict[str, Any]) -> list[Completion]:
    """Sample in process, in a process of its own: vLLM gives memory back only at its end."""
    stops, prompts, limit = spec["stops"], spec["prompts"], spec["max_tokens"]
    os.environ.update(ENVIRONMENT)
    if path == "engine":
        stage = dataclasses.replace(
            cpu_stage(spec["folder"]), sampling="vllm", vllm_kv_gib=1.0, sampling_rows=32, max_seq_length=2048,
        )
        model, _ = load_for_evaluation(spec["folder"], stage)
        if not isinstance(model.engine, VllmEngine):
            raise RuntimeError("vLLM did not start")
        return complete(model, prompts, limit)
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    adapter = {"enable_lora": True, "max_lora_rank": 16} if spec["adapter"] else {}
    llm = LLM(
        model=spec["base"], dtype="bfloat16", max_model_len=2048, enforce_eager=True,
        gpu_memory_utilization=0.05, kv_cache_memory_bytes=2**30, max_num_seqs=32, **adapter,
    )
    outputs = llm.generate(
        [{"prompt_token_ids": prompt} for prompt in prompts],
        SamplingParams(max_tokens=limit, temperature=0.0, logprobs=0, stop_token_ids=stops),
        use_tqdm=False,
        lora_request=LoRARequest("policy", 1, spec["adapter"]) if spec["adapter"] else None,
    )
    return [
        Completion(list(row.token_ids),
                   [by[t].logprob for t, by in zip(row.token_ids, row.logprobs, strict=True)])
        for row in (output.outputs[0] for output in outputs)
    ]


class Server:
    """`vllm serve` on the loopback address, ended when the block ends."""

    def __init__(self, base: str, adapter: str, log: Path) -> None:
        """Choose a port and the command."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.model = "policy" if adapter else base
        more = [*ADAPTER, "--lora-modules", f"policy={adapter}"] if adapter else []
        self.command = [
            sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", base, "--host", "127.0.0.1",
            "--port", str(self.port), *SERVED, *more,
            "--enable-auto-tool-choice", "--tool-call-parser", "openai",
        ]
        self.log = log

    def __enter__(self) -> "Server":
        with open(self.log, "w", encoding="utf-8") as log:
            env = os.environ | ENVIRONMENT | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, env=env)
        end = time.monotonic() + START_S
        while time.monotonic() < end and self.process.poll() is None:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2)
                return self
            except OSError:
                time.sleep(1)
        self.__exit__()
        raise RuntimeError(f"vllm serve did not start; see {self.log}")

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send one request."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/{path}",
            json.dumps({"model": self.model, "temperature": 0.0, **body}).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{path}: {error.code} {error.read()[:500].decode()}") from error

    def complete(self, prompt: list[int], spec: dict[str, Any]) -> Completion:
        """Complete one prompt through /v1/completions."""
        choice = self.post("completions", {
            "prompt": prompt, "max_tokens": spec["max_tokens"], "logprobs": 0,
            "stop_token_ids": spec["stops"], "return_token_ids": True,
        })["choices"][0]
        return Completion(choice["token_ids"], choice["logprobs"]["token_logprobs"])

    def chat(self, query: str, limit: int) -> tuple[list[int], Completion]:
        """Ask one chat with all tools; returns the prompt as the server rendered it and the answer."""
        answer = self.post("chat/completions", {
            "messages": [{"role": "system", "content": "You help customers of a store."},
                         {"role": "user", "content": query}],
            "tools": list(TOOL_SCHEMAS.values()),
            "max_completion_tokens": limit, "logprobs": True, "return_token_ids": True,
        })
        choice = answer["choices"][0]
        values = [row["logprob"] for row in choice["logprobs"]["content"]]
        return answer["prompt_token_ids"], Completion(choice["token_ids"], values)


def check_form(
    model: str, form: str, folder: Path, prompts: list[list[int]], queries: list[str], work: Path
) -> list[dict[str, Any]]:
    """Check one form on all paths; what fails is a case with its error."""
    base, adapter = base_of(folder)
    stops = read_json(Path(base) / "generation_config.json", {})["eos_token_id"]
    spec = {
        "base": base, "adapter": adapter, "folder": str(folder), "prompts": prompts,
        "stops": stops if isinstance(stops, list) else [stops], "max_tokens": MAX_TOKENS[model],
    }
    name = f"{model}-{form}"
    ours = our_answers(folder, prompts, spec["max_tokens"])
    gc.collect()
    cases = []

    def note(path: str, found: dict[str, Any]) -> None:
        cases.append({"model": model, "form": form, "path": path, **found})
        print(cases[-1], flush=True)

    for path in ("in_process", "engine"):
        spec_path, out_path = work / f"{name}-{path}.json", work / f"{name}-{path}-out.json"
        write_json_atomic(spec_path, spec)
        out_path.unlink(missing_ok=True)
        command = [sys.executable, __file__, "--child", path, str(spec_path), str(out_path)]
        done = subprocess.run(command, capture_output=True, text=True)
        (work / f"{name}-{path}.log").write_text(done.stdout + done.stderr, encoding="utf-8")
        rows = read_json(out_path, None)
        if rows is None:
            lines = done.stderr.strip().splitlines() or ["no message"]
            note(path, {"error": lines[-1][:300]})
        else:
            note(path, compare([Completion(*row) for row in rows], ours))
    try:
        with Server(base, adapter, work / f"{name}-serve.log") as server:
            with ThreadPoolExecutor(16) as pool:
                theirs = list(pool.map(lambda prompt: server.complete(prompt, spec), prompts))
            note("serve_completions", compare(theirs, ours))
            if model == "narrow":
                rows = [server.chat(query, spec["max_tokens"]) for query in queries]
                ids = [prompt for prompt, _ in rows]
                ours = our_answers(folder, ids, spec["max_tokens"])
                note("serve_chat_tools", compare([answer for _, answer in rows], ours))
    except (RuntimeError, KeyError, TypeError, OSError) as error:
        note("serve", {"error": f"{type(error).__name__}: {error}"[:400]})
    return cases


def check_gguf(adapter: Path, llama_cpp: Path, prompts: list[list[int]], work: Path) -> dict[str, Any]:
    """Make a GGUF of an adapter's model, load it with llama.cpp and compare on a CPU."""
    import numpy as np
    from llama_cpp import Llama

    model, tokenizer = load_for_evaluation(str(adapter), cpu_stage(str(adapter)))
    export_model(
        model, tokenizer, work / "gguf", cpu_stage(str(adapter)), "gguf", str(llama_cpp)
    )
    ours = our_answers(work / "gguf", prompts, MAX_TOKENS["small"])
    served = Llama(str(work / "gguf" / "model.gguf"), n_ctx=1024, logits_all=True, verbose=False)
    differences, same, cuts = [], 0, 0
    stops = set(model.generation_config.eos_token_id)
    for prompt, answer in zip(prompts, ours, strict=True):
        text = tokenizer.decode(prompt)
        cuts += served.tokenize(text.encode(), add_bos=False, special=True) == prompt
        served.reset()
        served.eval(prompt)
        ids: list[int] = []
        while len(ids) < MAX_TOKENS["small"]:
            scores = np.array(served.scores[served.n_tokens - 1], dtype=np.float64)
            token = int(scores.argmax())
            if ids == answer.ids[: len(ids)] and token == answer.ids[len(ids)]:
                value = scores[token] - np.logaddexp.reduce(scores)
                differences.append(abs(value - answer.log_probs[len(ids)]))
            ids.append(token)
            if token in stops:
                break
            served.eval([token])
        same += ids == answer.ids
    return {
        "llama_cpp_python": __import__("llama_cpp").__version__, "same_text": same / len(prompts),
        "same_tokens_of_prompt": cuts / len(prompts), "of": len(prompts),
        "mean_abs_logprob_diff": float(np.mean(differences)),
        "max_abs_logprob_diff": float(np.max(differences)),
    }


def main() -> None:
    """Check what the options name, and add it to the file."""
    if sys.argv[1:2] == ["--child"]:
        path, spec_path, out_path = sys.argv[2:]
        found = run_child(path, json.loads(Path(spec_path).read_text(encoding="utf-8")))
        write_json_atomic(Path(out_path), [[one.ids, one.log_probs] for one in found])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapter", type=Path, help="adapter of the small model")
    parser.add_argument("--tokenizer", type=Path, help="folder of the released tokenizer")
    parser.add_argument("--llama-cpp", type=Path, help="llama.cpp's sources: check a GGUF instead")
    parser.add_argument("--work", type=Path, required=True, help="folder for exports and logs")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--num-prompts", type=int, default=96)
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--jobs", type=int, default=1, help="forms at the same time")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    tasks = read_tasks(ROOT / "3.5k.jsonl")[: arguments.num_prompts]
    facts = {"vllm": VERSION, "cases": [], "gguf": {}} | read_json(arguments.output, {})
    model = "small" if arguments.adapter else "narrow"
    adapter = arguments.adapter or make_narrow(arguments.tokenizer, arguments.work)
    _, tokenizer = load_for_evaluation(str(adapter), cpu_stage(str(adapter)))
    if model == "narrow":
        tasks = tasks[:32]
    prompts = [
        tokenizer(plan_prompt(task, "brief"), add_special_tokens=False)["input_ids"] for task in tasks
    ]
    if arguments.llama_cpp:
        facts["gguf"] = check_gguf(adapter, arguments.llama_cpp, prompts, arguments.work)
        write_json_atomic(arguments.output, facts)
        return
    facts["device"] = torch.cuda.get_device_name(0)
    folders = make_forms(adapter, arguments.work)
    queries = [task.query for task in tasks[:8]]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        begun = {
            form: pool.submit(check_form, model, form, folders[form], prompts, queries, arguments.work)
            for form in arguments.forms.split(",")
        }
        for form, running in begun.items():
            kept = [c for c in facts["cases"] if (c["model"], c["form"]) != (model, form)]
            facts["cases"] = kept + running.result()
            write_json_atomic(arguments.output, facts)


if __name__ == "__main__":
    main()
