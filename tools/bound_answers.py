"""Answers of a real model, bound to JSON schemas: how many fit, how fast, what was accepted.

    python -m tools.bound_answers FOLDER --answers 1000          # an exported folder; --plain: without drafts

Half of the answers are greedy, half sampled at temperature 1. Status 1 unless every answer fits its schema.
"""

import argparse
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
from mtpd_onnx.runtime.bound import BoundFolder

from mtpd_mlx.speculative.loop import generate
from mtpd_mlx.speculative.sampling import Sampling
from mtpd_mlx.text.grammar import Grammars, schema_grammar
from mtpd_mlx.text.tokenizer import Tokenizer

NAME, WORD = {"type": "string", "minLength": 1, "maxLength": 30}, {"type": "string", "pattern": "^[a-z]{2,12}$"}


def whole(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Every property is required and no other allowed."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False} | more


def some(items: dict[str, Any], **limits: int) -> dict[str, Any]:
    return {"type": "array", "items": items} | limits


def of_shape(kind: str, size: str) -> dict[str, Any]:
    return whole({"kind": {"const": kind}, size: {"type": "integer", "minimum": 1, "maximum": 99}})


NODE = whole({"label": WORD, "children": some(whole({"label": WORD}), maxItems=2)})
PERSON = whole({"first": NAME, "last": NAME})
SCHEMAS: dict[str, dict[str, Any]] = {
    "a person": whole({"name": NAME, "age": {"type": "integer", "minimum": 0, "maximum": 120}, "married": {"type": "boolean"}}),
    "a recipe": whole({"title": NAME, "steps": some(NAME, minItems=2, maxItems=4)}),
    "the weather": whole({"city": NAME, "unit": {"enum": ["celsius", "fahrenheit"]}, "degrees": {"type": "number"}}),
    "a book": whole({"title": NAME, "author": PERSON, "tags": some(WORD, maxItems=3)}),
    "an order": whole(
        {"id": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"}, "date": {"type": "string", "format": "date"}}
    ),
    "a shape": {"anyOf": [of_shape("circle", "radius"), of_shape("square", "side")]},
    "a tree": {"$ref": "#/$defs/node", "$defs": {"node": NODE}},
    "nothing at all": whole({"reason": {"type": ["string", "null"], "maxLength": 20}}),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--answers", type=int, default=1000)
    parser.add_argument("--max-tokens", type=int, default=300)
    parser.add_argument("--plain", action="store_true")
    args = parser.parse_args(arguments)
    folder, tokenizer = BoundFolder(args.folder), Tokenizer.from_folder(args.folder)
    grammars = Grammars(tokenizer, folder.manifest.dims["vocab_size"])
    samplings = [Sampling(), Sampling(temp=1.0)]
    backends = [folder.decoder(sampling, 0 if args.plain else None) for sampling in samplings]
    wrong, tokens, rounds, began = list[str](), 0, Counter[str](), time.perf_counter()
    for i in range(args.answers):
        about, schema = list(SCHEMAS.items())[i // 2 % len(SCHEMAS)]
        messages = [{"role": "user", "content": f"Number {i // 2}: describe {about} as JSON that fits {json.dumps(schema)}"}]
        prompt = tokenizer.encode(tokenizer.apply_chat_template(messages, True), False)
        backend, text = backends[i % 2], list[int]()
        backend.rewind_to(0)
        backend.bind(grammars.constraint(schema_grammar(schema)))
        for chunk in generate(
            backend, prompt, max_tokens=args.max_tokens, eos_token_ids=tokenizer.eos_token_ids, plain=args.plain
        ):
            text += chunk.tokens
            rounds[chunk.round.source if chunk.round else "plain"] += not chunk.prompt_tokens
        tokens += len(text)
        try:
            jsonschema.validate(json.loads(tokenizer.decode(text)), schema)
        except (ValueError, jsonschema.ValidationError) as error:
            wrong.append(f"{about}, {chunk.finish_reason}: {str(error).splitlines()[0]}: {tokenizer.decode(text)[:200]!r}")
    seconds = time.perf_counter() - began
    print(f"{args.answers - len(wrong)} of {args.answers} answers fit; {tokens} tokens in {seconds:.0f} s, prefill included")
    print(f"passes: {dict(rounds)}, {tokens / sum(rounds.values()):.2f} tokens each")
    for line in wrong[:10]:
        print(line)
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
