"""Models that are no GPT-OSS go through the same steps: their template, stop tokens and layers."""

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import configs
import train_script
from data_reader import gold_completion, plan_messages, plan_prompt, sft_rows
from gptoss import export
from gptoss.folded import HeldPromptGenerate, folded_adapter
from gptoss.generation import complete
from gptoss.load import load_for_evaluation, load_model, logits_on
from gptoss.plain import plain_logits
from gptoss.preflight import ModelError, count_parameters
from prompting.plan_format import HARMONY, plan_format
from scoring.reward import score_completion
from tests import tiny_dense, tiny_random
from training.examples import example_prompts
from training.sft import build_sft_trainer

FAMILIES = tuple(tiny_dense.FAMILIES)
ENDS = {
    "llama": "<|im_end|>", "gemma": "<end_of_turn>", "gemma-vision": "<end_of_turn>", "qwen": "<|im_end|>",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("dense")
    return {family: tiny_dense.make_model_dir(root / family, family) for family in FAMILIES}


def stage_of(folder: Path, **changes: object) -> configs.ModelStage:
    model = configs.get_preset("small-dense").model
    return replace(model, model_name=str(folder), num_threads=1, lora_rank=4, **changes)


def written(model, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
    """Return the likeliest completions, as token ids."""
    return [completion.ids for completion in complete(model, prompts, max_new_tokens)]


def run_config(folder: Path, model_dir: Path, **overrides: object) -> configs.RunConfig:
    """Return settings of a run of a few seconds."""
    tasks = tiny_random.write_tasks(folder / "tasks.jsonl", 40)
    settings = {
        "model.model_name": str(model_dir), "model.num_threads": 1, "model.lora_rank": 4,
        "model.max_seq_length": 1024, "data.prompt_style": "brief",
        "data.dataset_path": str(tasks), "data.eval_dataset_path": str(tasks),
        "sft.max_steps": 2, "sft.logging_steps": 1, "sft.warmup_steps": 0,
        "sft.gradient_accumulation_steps": 1, "sft.save_steps": 1,
        "grpo.max_steps": 1, "grpo.num_generations": 4, "grpo.per_device_train_batch_size": 4,
        "grpo.gradient_accumulation_steps": 2, "grpo.max_completion_length": 12, "grpo.eval_steps": 0,
        "grpo.early_stopping_patience": 0,
        "evaluation.num_tasks": 4, "evaluation.batch_size": 4, "evaluation.max_new_tokens": 12,
        "evaluation.num_bootstrap": 20, "output_dir": str(folder / "run"), "show_progress": False,
    }
    return configs.with_overrides(configs.get_preset("small-dense"), settings | overrides)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_gold_answer_comes_back_from_its_own_format(family, db):
    tokenizer = tiny_dense.make_tokenizer(family)
    plans = plan_format(tokenizer)
    [task] = tiny_random.make_tasks(1)
    completion = plans.completion(gold_completion(task))
    assert plans.end_token == ENDS[family] and completion.endswith(ENDS[family])
    score = score_completion(task, plans.final_text(completion + "\nmore"), db)
    assert score.reward == score.max_reward
    whole = [
        {"role": "system" if m["role"] == "developer" else m["role"], "content": m["content"]}
        for m in plan_messages(task)
    ]
    prompt = plan_prompt(task, "full", plans)
    assert task.query in prompt and whole[0]["content"].strip() in prompt
    if family == "llama":
        answered = [*whole, {"role": "assistant", "content": gold_completion(task)}]
        assert tokenizer.apply_chat_template(answered, tokenize=False).startswith(prompt + completion)


def test_a_template_that_thinks_is_asked_not_to():
    plans = plan_format(tiny_dense.make_tokenizer("qwen"))
    [task] = tiny_random.make_tasks(1)
    assert plan_prompt(task, "brief", plans).endswith("<think>\n\n</think>\n\n")
    assert plans.final_text("<think>\nHm.\n</think>\n\n{}<|im_end|>") == "{}"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_prompt_that_is_shown_is_the_one_that_is_trained(family, db):
    tokenizer, config = tiny_dense.make_tokenizer(family), configs.get_preset("small-dense")
    tasks = tiny_random.make_tasks(2)
    shown = example_prompts(tokenizer, tasks, db, config)
    assert shown == [row["prompt"] for row in sft_rows(tasks, "full", plan_format(tokenizer))]
    assert not any(token in prompt for prompt in shown for token in ("<|start|>", "<|message|>"))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_query_cannot_open_a_message(family):
    tokenizer = tiny_dense.make_tokenizer(family)
    plans = plan_format(tokenizer)
    [task] = tiny_random.make_tasks(1)
    marks = [token for token in tokenizer.all_special_tokens + list(tokenizer.get_added_vocab())]
    calm, loud = (
        tokenizer(plan_prompt(replace(task, query=query), "brief", plans))["input_ids"]
        for query in ("hello", "hello " + " ".join(marks))
    )
    special = set(tokenizer.get_added_vocab().values())
    assert [i for i in loud if i in special] == [i for i in calm if i in special]


def test_gpt_oss_keeps_harmony():
    assert plan_format(tiny_random.make_tokenizer()) is HARMONY
    assert plan_format(AutoTokenizer.from_pretrained("models/tiny-gpt-oss")) is HARMONY


@pytest.mark.parametrize("family", FAMILIES)
def test_stop_tokens_padding_and_layers(family, folders, capsys):
    model, tokenizer = load_model(stage_of(folders[family]))
    assert tokenizer.eos_token == ENDS[family] and tokenizer.padding_side == "left"
    assert tokenizer.eos_token_id in model.generation_config.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id is not None
    reached = {name.split(".")[-4] for name, p in model.named_parameters() if p.requires_grad}
    assert reached == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert not [name for name, p in model.named_parameters() if p.requires_grad and "vision" in name]
    assert "(attention+MLP)" in capsys.readouterr().out
    model, _ = load_model(stage_of(folders[family], lora_reach="attention", sampling="vllm"))
    reached = {name.split(".")[-4] for name, p in model.named_parameters() if p.requires_grad}
    assert reached == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert "model.sampling=vllm is for GPT-OSS; transformers' generate is used" in capsys.readouterr().out


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_decodes_as_its_rows_do_alone(family, folders):
    """Left padding changes no position, and a row ends at its stop token, whatever others do."""
    model, tokenizer = load_for_evaluation(str(folders[family]), stage_of(folders[family]))
    texts = ["Hi", "I am Ann and I would like to return my order.", "What is 1 + 2? " * 8]
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    model.generation_config.eos_token_id = [len(tokenizer)]  # no row ends
    alone = [written(model, [row], 24)[0] for row in rows]
    assert written(model, rows, 24) == alone
    # A token of the first row alone becomes a stop token: that row ends there, and only that one.
    stop = next(t for t in alone[0] if all(t not in row for row in alone[1:]))
    model.generation_config.eos_token_id = [stop]
    ended = written(model, rows, 24)
    assert ended[0] == alone[0][: alone[0].index(stop) + 1] and ended[1:] == alone[1:]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [1, 3])
def test_held_prompts_decode_as_transformers_does(family, size, folders, monkeypatch):
    monkeypatch.setattr("gptoss.folded.PROMPTS_PER_PASS", 2)
    model, tokenizer = load_model(stage_of(folders[family], sampling="fast"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.generation_config.eos_token_id = [len(tokenizer)]  # no row ends
    texts = ["Hi", "I am Ann and I would like to return my order.", "What is 1 + 2? " * 8]
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts for _ in range(size)]
    held = complete(model, rows, 24)
    seeds = list(range(len(rows)))
    drawn = complete(model, rows, 24, 1.0, seeds)
    ended = held[0].ids[:3]
    del model.generate
    plain = complete(model, rows, 24)
    assert [c.ids for c in held] == [c.ids for c in plain]
    for one, other in zip(held, plain, strict=True):
        assert one.log_probs == pytest.approx(other.log_probs, abs=2e-3)
    assert [c.ids for c in drawn] == [c.ids for c in complete(model, rows, 24, 1.0, seeds)]
    model.generate = HeldPromptGenerate(model)
    model.generation_config.eos_token_id = [ended[-1]]
    first = complete(model, rows, 24)[0].ids
    assert first == ended[: ended.index(ended[-1]) + 1]


def test_sampling_folds_the_adapter_in_and_leaves_no_trace(folders):
    model, tokenizer = load_model(stage_of(folders["llama"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = [tokenizer("I am Ann.")["input_ids"], tokenizer("Hi")["input_ids"]]
    folded = written(model, rows, 12)
    logits = logits_on(model, tokenizer, ["Hi"])
    with folded_adapter(model):
        torch.testing.assert_close(logits_on(model, tokenizer, ["Hi"]), logits, atol=1e-4, rtol=1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    del model.generate
    assert written(model, rows, 12) == folded
    with model.disable_adapter():
        assert written(model, rows, 12) != folded


@pytest.mark.parametrize("family", FAMILIES)
def test_sft_trains_the_answer_and_its_end_alone(family, folders, tmp_path):
    config = run_config(tmp_path, folders[family])
    model, tokenizer = load_model(config.model)
    tasks = tiny_random.make_tasks(8)
    trainer = build_sft_trainer(model, tokenizer, tasks, config)
    row = next(iter(trainer.get_train_dataloader()))
    golds = {r["prompt"] + r["completion"]: r for r in sft_rows(tasks, "brief", plan_format(tokenizer))}
    for ids, labels, mask in zip(row["input_ids"], row["labels"], row["attention_mask"], strict=True):
        text = tokenizer.decode(ids[mask.bool()])
        assert tokenizer.decode(labels[labels != -100]) == golds[text]["completion"]
    assert row["labels"][0].shape == row["input_ids"][0].shape


def test_a_base_model_gets_one_line(tmp_path, capsys, folders):
    folder = tiny_dense.make_model_dir(tmp_path / "base", "llama")
    (folder / "chat_template.jinja").unlink()
    arguments = ["--preset", "auto", "--set", f"model.model_name={folder}", "--output-dir"]
    assert train_script.main([*arguments, str(tmp_path / "run")]) == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert str(folder) in line and "no chat template" in line and "-Instruct" in line


def test_the_name_must_show_a_gpt_oss(tmp_path, monkeypatch):
    folder = tiny_random.make_model_dir(tmp_path / "model")
    monkeypatch.setattr("gptoss.load.is_gpt_oss", lambda name: False)
    with pytest.raises(ModelError, match="is a gpt_oss, which its name does not show"):
        load_model(stage_of(folder))


def test_auto_picks_by_the_model(folders):
    assert configs.get_preset("auto", model_name=str(folders["llama"])).preset == "small-dense"
    assert configs.get_preset("auto", model_name="Qwen/Qwen3-0.6B").preset == "small-dense"
    assert configs.get_preset("auto", model_name="unsloth/gpt-oss-20b") == configs.get_preset("auto")
    assert "no GPT-OSS" in configs.describe_device("Qwen/Qwen3-0.6B")
    found = configs.config_of_model(str(folders["llama"]))
    assert found.model.model_name == str(folders["llama"]) and found.data.prompt_style == "full"


def test_sizes_are_read_from_names_and_folders(folders):
    assert count_parameters("HuggingFaceTB/SmolLM2-1.7B-Instruct") == 1_700_000_000
    assert count_parameters("unsloth/gpt-oss-20b") == 20_000_000_000
    assert 0 < count_parameters(str(folders["llama"])) < 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("family", ("llama", "gemma", "gemma-vision"))
def test_the_whole_run(family, folders, tmp_path, monkeypatch, capsys, caplog, db):
    from agent.conversation import Conversation  # noqa: F401  (torch-free; here for the last step)
    from task_tester import main as tester
    from training.chat import run_chat
    from training.pipeline import run_pipeline

    config = run_config(tmp_path, folders[family])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        metrics = run_pipeline(config)
    assert list(metrics) == ["base", "sft", "sft_grpo"]
    run = tmp_path / "run"
    first = (run / "evaluation.json").read_bytes()
    card = (run / "final_model" / "README.md").read_text()
    assert "chat template" in card and "gpt-oss" not in card and "harmony" not in card

    # A killed run: GRPO's result is gone, SFT's is restored, and the end is the same.
    trained, tokenizer = load_for_evaluation(str(run / "final_model"), config.model)
    before = logits_on(trained, tokenizer, ["Hi", "I am Ann."])
    for name in ("final_model", "merged_model"):
        (run / name).rename(tmp_path / name)
    run_pipeline(config, resume=True)
    assert (run / "evaluation.json").read_bytes() == first
    again, _ = load_for_evaluation(str(run / "final_model"), config.model)
    assert torch.equal(logits_on(again, tokenizer, ["Hi", "I am Ann."]), before)

    # Plain transformers read the merged model.
    merged = AutoModelForCausalLM.from_pretrained(run / "merged_model").eval()
    assert type(merged).__name__ == tiny_dense.FAMILIES[family][0].__name__
    torch.testing.assert_close(logits_on(merged, tokenizer, ["Hi", "I am Ann."]), before, atol=1e-4, rtol=0)

    capsys.readouterr()
    assert run_chat(str(run / "merged_model"), ["Cancel my order #W1234567."]) == 0
    assert "customer: Cancel my order" in capsys.readouterr().out
    command = ["export", "--model", str(run / "final_model"), "--output", str(tmp_path / "out")]
    if family != "llama":  # one export is reloaded in a process of its own
        monkeypatch.setattr(export, "reload_logits", lambda folder, prompts: plain_logits(str(folder), prompts))
    assert train_script.main([*command, "--format", "16bit"]) == 0
    assert "same likeliest token in 100% of 7 prompts" in capsys.readouterr().out
    assert train_script.main([*command[:-1], str(tmp_path / "adapter"), "--format", "adapter"]) == 0
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    capsys.readouterr()
    assert train_script.main([*command[:-1], str(tmp_path / "packed"), "--format", "mxfp4"]) == 1
    assert "use --format 16bit" in capsys.readouterr().err
    words = ["evaluate", "--tasks", str(tmp_path / "tasks.jsonl"), "--limit", "2", "--model"]
    assert tester([*words, str(run / "merged_model"), "--output", str(tmp_path / "plan")]) == 0
    assert json.loads((tmp_path / "plan" / "evaluation.json").read_text())["model"]["num_tasks"] == 2
    words += [str(run / "merged_model"), "--mode", "agent", "--max-new-tokens", "8"]
    assert tester([*words, "--output", str(tmp_path / "agent")]) == 0
    found = json.loads((tmp_path / "agent" / "evaluation.json").read_text())
    assert found["num_tasks"] == 2
    told = capsys.readouterr().err + caplog.text
    assert "new PAD/BOS/EOS" not in told and "Ignoring clean_up" not in told


@pytest.mark.slow
def test_rows_of_the_comparison(folders, tmp_path, monkeypatch, capsys):
    from transformers.trainer import DEFAULT_CALLBACKS

    from benchmarks import learning

    config = run_config(tmp_path, folders["llama"])
    changed = {
        f"{stage}.{name}": value for stage in ("data", "sft", "grpo", "evaluation", "model")
        for name, value in vars(getattr(config, stage)).items() if name not in ("model_name", "max_steps")
    }
    words = ["learning.py", "--model", str(folders["llama"]), "--num-tasks", "4"]
    words += ["--run-dir", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    words += [word for name, value in changed.items() for word in ("--set", f"{name}={value}")]

    def row(*options: str, name: str = "") -> dict:
        monkeypatch.setattr("sys.argv", [*words, "--method", *options])
        learning.main()
        DEFAULT_CALLBACKS[:] = [c for c in DEFAULT_CALLBACKS if isinstance(c, type)]
        name = name or f"llama-{options[0]}" + ("" if options[0] == "base" else "-1")
        return json.loads((tmp_path / "results" / f"{name}.json").read_text())

    with pytest.raises(SystemExit, match="run --method sft --seed 1 first"):
        row("grpo", "--steps", "1")
    assert row("base")["metrics"]["num_tasks"] == 4
    assert row("sft", "--steps", "2")["steps"] == 2
    adapter = tmp_path / "runs" / "llama-sft-1" / "sft" / "adapter"
    assert f"its own adapter: {adapter}" in capsys.readouterr().out
    grpo = row("grpo", "--minutes", "0.01")
    assert grpo["steps"] >= 1 and len(grpo["db_match"]) == 4 and "reward" in grpo["curve"][0]
    told = capsys.readouterr().out
    assert f"it began with the adapter {adapter}" in told
    assert f"its own adapter: {tmp_path / 'runs' / 'llama-grpo-1' / 'final_model'}" in told
    assert row("random", "--steps", "1")["settings"]["grpo"]["early_stopping_patience"] == 0
    assert row("more-sft")["settings"]["seed"] == 1001
    capsys.readouterr()
    row("base")
    assert "is done" in capsys.readouterr().out

    # Another evaluation of what was trained: nothing is trained again.
    again = row("evaluate", "--of", "grpo", name="llama-grpo-1-on-tasks")
    for name in ("exact_match", "db_match", "metrics", "method"):
        assert again[name] == grpo[name]
    assert "steps" not in again and again["settings"]["grpo"]["max_steps"] == 0
    sampled = row("evaluate", "--of", "sft", "--trials", "3", name="llama-sft-1-on-tasks-x3")
    assert len(sampled["db_match"]) == 12 and set(sampled["metrics"]["pass_hat_k"]) == {"1", "2", "3"}
    assert sampled["metrics"]["num_tasks"] == 4 and not sampled["settings"]["evaluation"]["greedy"]

    # An adapter from elsewhere, tasks on another store.
    elsewhere = shutil.copytree(adapter, tmp_path / "kept")
    store = shutil.copytree("envs/retail/data", tmp_path / "store")
    shutil.copy(tmp_path / "tasks.jsonl", tmp_path / "other.jsonl")
    shutil.rmtree(tmp_path / "runs")
    other = row(
        "evaluate", "--of", "sft", "--adapter", str(elsewhere), "--set", f"data.data_dir={store}",
        "--set", f"data.eval_dataset_path={tmp_path / 'other.jsonl'}", name="llama-sft-1-on-other",
    )
    assert other["exact_match"] == row("sft")["exact_match"] and other["settings"]["data"]["data_dir"]
    (tmp_path / "results" / "llama-random-1.json").unlink()
    assert row("random", "--steps", "1", "--adapter", str(elsewhere))["steps"] == 1
    for options, said in (
        (("evaluate", "--of", "sft", "--adapter", str(tmp_path), "--trials", "2"), "no adapter_config.json"),
        (("evaluate", "--of", "more-sft"), "run --method more-sft --seed 1 first"),
        (("base", "--set", "grpo.nothing=1"), "error: unknown field"),
    ):
        with pytest.raises(SystemExit, match=said):
            row(*options)


@pytest.mark.slow
def test_a_row_of_agent_mode(tmp_path, monkeypatch):
    from benchmarks import learning

    config = tiny_random.tiny_config(tmp_path)
    words = ["learning.py", "--model", config.model.model_name, "--mode", "agent", "--num-tasks", "2"]
    words += ["--preset", "cpu", "--run-dir", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    for name, value in {
        "data.dataset_path": config.data.dataset_path, "data.grpo_dataset_path": "",
        "data.eval_dataset_path": config.data.eval_dataset_path, "agent.max_turns": 2,
        "agent.max_turn_tokens": 12, "model.num_threads": 1,
    }.items():
        words += ["--set", f"{name}={value}"]
    monkeypatch.setattr("sys.argv", [*words, "--method", "evaluate", "--of", "base", "--trials", "2"])
    learning.main()
    [path] = (tmp_path / "results").iterdir()
    row = json.loads(path.read_text())
    assert path.name == "model-agent-base-on-tasks-x2.json" and row["settings"]["mode"] == "agent"
    assert len(row["success"]) == len(row["db_match"]) == 4
    assert set(row["metrics"]["pass_hat_k"]) == {"1", "2"}
