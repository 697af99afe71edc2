"""Run llama.cpp's converter, with the small model's tokenizer named to it.

    to_gguf.py LLAMA_CPP MODEL_DIR OUTFILE

The converter knows a tokenizer by the hash of what it makes of one text, so of GPT-OSS it knows the
released vocabulary alone. Another vocabulary that cuts text the same way, as the small model's, is
named for it here; llama.cpp calls that way "gpt-4o".
"""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

CUT = r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""The end of GPT-OSS's pattern; no other one of llama.cpp's list takes line ends and slashes so."""
NAME = "gpt-4o"


def name_tokenizer(text_model: Any, model_dir: Path) -> None:
    """Name the tokenizer of the folder to llama.cpp's `TextModel` where it cuts text as GPT-OSS's does."""
    facts = json.loads((model_dir / "tokenizer.json").read_text(encoding="utf-8"))
    parts = facts["pre_tokenizer"].get("pretokenizers", [])
    patterns = [part["pattern"].get("Regex", "") for part in parts if part["type"] == "Split"]
    if [pattern for pattern in patterns if pattern.endswith(CUT)] == patterns != []:
        text_model.get_vocab_base_pre = lambda self, tokenizer: NAME


def main() -> None:
    """Convert the folder."""
    llama_cpp, model_dir, outfile = map(Path, sys.argv[1:])
    sys.path.insert(0, str(llama_cpp))
    if (llama_cpp / "conversion").is_dir():  # older sources know the released vocabulary only
        from conversion.base import TextModel

        name_tokenizer(TextModel, model_dir)
    sys.argv = ["convert_hf_to_gguf.py", str(model_dir), "--outfile", str(outfile)]
    runpy.run_path(str(llama_cpp / "convert_hf_to_gguf.py"), run_name="__main__")


if __name__ == "__main__":
    main()
