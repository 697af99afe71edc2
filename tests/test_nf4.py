"""A 16-bit checkpoint becomes the 4-bit, per-expert layout: names, orientation, values, reuse, faults.

bitsandbytes is not part of the CPU stack, so an NF4 quantizer of a few lines stands in for it, whose
packed weights can be read back; `tests/test_gpu.py` runs the real one.
"""

import json
import shutil
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_random import make_model_dir

from configs import ModelStage
from gptoss import load as model_module
from gptoss import nf4, preflight
from gptoss.load import load_model
from gptoss.preflight import ModelError, list_weight_files

NF4 = torch.tensor([
    -1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911, 0.0, 0.0796, 0.1609, 0.2461, 0.3379,
    0.4407, 0.5626, 0.7230, 1.0,
])


class State:
    """Scales and shape of a packed weight."""

    def __init__(self, absmax: torch.Tensor, shape: torch.Size) -> None:
        self.absmax, self.shape = absmax, torch.tensor(shape)

    def as_dict(self, packed: bool) -> dict[str, torch.Tensor]:
        assert packed
        return {"absmax": self.absmax, "shape": self.shape}


def quantize_4bit(weight, blocksize, compress_statistics, quant_type):
    assert weight.is_contiguous() and compress_statistics and quant_type == "nf4"
    blocks = weight.float().reshape(-1, blocksize)
    absmax = blocks.abs().amax(1)
    codes = ((blocks / absmax[:, None])[..., None] - NF4).abs().argmin(-1).to(torch.uint8)
    return codes.reshape(-1, 1), State(absmax, weight.shape)


def unpack(tensors: dict[str, torch.Tensor], key: str) -> torch.Tensor:
    absmax, shape = tensors[f"{key}.absmax"], tensors[f"{key}.shape"].tolist()
    blocks = NF4[tensors[key].flatten().long()].reshape(len(absmax), -1)
    return (blocks * absmax[:, None]).reshape(shape)


@pytest.fixture(autouse=True)
def quantizer(monkeypatch):
    functional = types.ModuleType("bitsandbytes.functional")
    functional.quantize_4bit = quantize_4bit
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", functional)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_model_dir(tmp_path / "base")


def read_all(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for path in list_weight_files(folder) for k, v in load_file(str(path)).items()}


def test_layout_is_that_of_the_prequantized_model(folder: Path):
    assert nf4.holds_fused_experts(folder)
    packed = nf4.pack_checkpoint(folder)
    assert packed == folder.parent / "base-bnb-4bit"
    assert not nf4.holds_fused_experts(packed)
    names = {n.replace(".absmax", "").replace(".shape", "") for n in read_all(packed)}
    assert {n for n in names if n.startswith("model.layers.1.mlp.")} == {
        "model.layers.1.mlp.router.linear.weight", "model.layers.1.mlp.router.linear.bias",
        *(f"model.layers.1.mlp.experts.{kind}.{n}.{part}" for kind in ("gate_up_projs", "down_projs")
          for n in range(4) for part in ("weight", "bias")),
    }
    config = json.loads((packed / "config.json").read_text())
    assert config["quantization_config"]["bnb_4bit_quant_type"] == "nf4"
    assert (packed / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_each_expert_is_its_own_weight_turned_round(folder: Path):
    dense, packed = read_all(folder), read_all(nf4.pack_checkpoint(folder))
    for kind in ("gate_up_proj", "down_proj"):
        weights = dense[f"model.layers.0.mlp.experts.{kind}"]
        biases = dense[f"model.layers.0.mlp.experts.{kind}_bias"]
        for number in range(4):
            key = f"model.layers.0.mlp.experts.{kind}s.{number}"
            error = (unpack(packed, f"{key}.weight") - weights[number].T).abs()
            # Half the widest gap between two NF4 levels (0.15), times the scale, plus bfloat16.
            assert error.max() < 0.16 * weights[number].abs().max()
            assert error.mean() < 0.1 * weights[number].abs().mean()
            assert torch.equal(packed[f"{key}.bias"], biases[number].bfloat16())
    query = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(packed[query], dense[query].bfloat16())
    router = packed["model.layers.0.mlp.router.linear.weight"]
    assert torch.equal(router, dense["model.layers.0.mlp.router.weight"].bfloat16())


def test_the_copy_is_used_again_until_the_checkpoint_changes(folder: Path, monkeypatch):
    packed = nf4.pack_checkpoint(folder)
    calls = []
    build = nf4.build_folder
    monkeypatch.setattr(nf4, "build_folder", lambda *a: calls.append(a) or build(*a))
    nf4.pack_checkpoint(folder)
    assert not calls
    weights = load_file(str(folder / "model.safetensors"))
    weights["extra"] = torch.zeros(1)
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    nf4.pack_checkpoint(folder)
    assert len(calls) == 1 and "extra" in read_all(packed)
    (packed / "config.json").write_text("{")  # a copy cut in half is made again
    nf4.pack_checkpoint(folder)
    assert len(calls) == 2


def test_load_model_packs_at_4bit(folder: Path, monkeypatch):
    loaded = []

    def refuse(stage, with_lora):
        loaded.append(stage.model_name)
        raise OSError("stop here")

    monkeypatch.setattr(model_module, "uses_unsloth", lambda stage: True)
    monkeypatch.setattr(model_module, "_load_unsloth", refuse)
    stage = ModelStage(model_name=str(folder), lora_rank=4)
    for wanted in (stage, replace(stage, load_in_4bit=False)):
        with pytest.raises(ModelError, match="stop here"):
            load_model(wanted)
    assert loaded == [str(folder.parent / "base-bnb-4bit"), str(folder)]


def test_no_disk_is_one_line_and_leaves_nothing(folder: Path, monkeypatch):
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ModelError, match="needs .* GB of disk.*load_in_4bit=false"):
        nf4.pack_checkpoint(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["base"]


def test_a_folder_that_cannot_be_written_is_one_line(folder: Path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(nf4, "build_folder", refuse)
    with pytest.raises(ModelError, match="cannot be written .*copy the checkpoint"):
        nf4.pack_checkpoint(folder)


def test_a_kill_while_packing_leaves_no_copy(folder: Path, monkeypatch):
    def stop(name, tensor):
        raise KeyboardInterrupt

    monkeypatch.setattr(nf4, "_pack_tensor", stop)
    with pytest.raises(KeyboardInterrupt):
        nf4.pack_checkpoint(folder)
    monkeypatch.undo()
    assert not nf4.packed_folder(folder).exists()
    shutil.rmtree(folder.parent / "base-bnb-4bit.tmp")


def test_missing_bitsandbytes_and_odd_shapes_are_one_line(folder: Path, monkeypatch):
    with pytest.raises(ModelError, match="no whole blocks of 64"):
        nf4._pack_experts("experts", torch.zeros(2, 3, 5))
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    with pytest.raises(ModelError, match="bitsandbytes is missing"):
        nf4.pack_checkpoint(folder)
