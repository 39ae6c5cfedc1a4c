"""Writes the tokenizer of a GGUF file as Hugging Face's tokenizer.json.

Benchmarks and evaluations count tokens with it, so that they have to agree with the worker's.

python tokenizer.py MODEL.gguf FOLDER
"""

import json
import pathlib
import sys

from transformers import AutoTokenizer


def main(model: pathlib.Path, folder: pathlib.Path) -> None:
    AutoTokenizer.from_pretrained(model.parent, gguf_file=model.name).save_pretrained(folder)
    # transformers overlooks tokenizer.ggml.add_space_prefix = false: a space before each text
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["pre_tokenizer"] = None
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    steps = tokenizer["decoder"]["decoders"]
    tokenizer["decoder"]["decoders"] = [s for s in steps if s["type"] != "Strip"]
    path.write_text(json.dumps(tokenizer, ensure_ascii=False))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
