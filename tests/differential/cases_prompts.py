"""Cases of what is asked: the sections of a prompt, truncation, pictures, raw input, previews."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Callable
from typing import Any

from symai import Expression, Symbol, core
from symai.prompts import Prompt

from gptx_async.testing import echo

from .asking import LONG, SKY
from .harness import World, case, cases


def png() -> bytes:
    """Make a picture of 4 by 4 grey dots."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", 4, 4, 8, 0, 0, 0, 0)
    dots = zlib.compress(b"\x00\x20\x40\x60\x80" * 4)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", dots) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@cases(
    {
        "plain": {},
        "system_prompt": {"prompt": "Answer like a pirate."},
        "examples": {"examples": Prompt(["red => colour", "Rome => town"])},
        "template_suffix": {"template_suffix": "{{colour}}"},
        "payload": {"payload": "The port is that of Chiba."},
        "payload_of_a_dict": {"payload": {"port": ["Chiba", 1984]}},
        "non_verbose": {"suppress_verbose_output": True},
        "all_sections": {
            "prompt": "Answer in one word.",
            "examples": Prompt(["red => colour"]),
            "template_suffix": "{{colour}}",
            "payload": "The port is that of Chiba.",
            "suppress_verbose_output": True,
            "response_format": {"type": "json_object"},
        },
        "system_instructions_parsed": {
            "prompt": "[SYSTEM_INSTRUCTION::]: <<<Be brief.>>>",
            "parse_system_instructions": True,
        },
        "unicode": {"prompt": "Ω≈ç√ \U0001f600 \x07 naïve"},
        "an_unknown_keyword": {"no_such_parameter": 1, "stream": True},
    }
)
def prompt(world: World, keywords: dict[str, Any]) -> Any:
    return Symbol(SKY).query("Which colour?", **keywords)


@case(silent=True)
def prompt_with_a_lone_surrogate(world: World) -> Any:
    return Symbol("half a \ud83d pair").query("Which character?")


@case(silent=True)
def prompt_with_a_special_token(world: World) -> Any:
    return Symbol("the text ends <|endoftext|> here").query("Where?")


@case()
def static_context(world: World) -> Any:
    return Symbol(SKY, static_context="This is a novel.").query("Which colour?")


@case()
def dynamic_context(world: World) -> Any:
    class Narrator(Expression):  # type: ignore[misc] # symbolicai ships no types
        def ask(self) -> Any:
            return self.query("Which colour?")

    narrator = Narrator(SKY)
    narrator.adapt("Speak of the sea.")
    narrator.adapt(Symbol("Speak low."))
    try:
        return narrator.ask()
    finally:
        narrator.clear()


@case()
def dynamic_context_of_one_symbol(world: World) -> Any:
    return Symbol(SKY, dynamic_context="Now it is night.").query("Which colour?")


@cases(
    {
        "the_user_tail": (SKY, LONG, "tail"),
        "the_user_head": (SKY, LONG, "head"),
        "the_system_tail": (LONG, SKY, "tail"),
        "the_system_head": (LONG, SKY, "head"),
        "both_tail": (LONG, LONG, "tail"),
        "both_head": (LONG, LONG, "head"),
    }
)
def truncation_of(world: World, parts: tuple[str, str, str]) -> Any:
    world.reply = echo
    system, user, end = parts
    return Symbol(user).query(
        "Which?", prompt=system, truncation_percentage=0.005, truncation_type=end
    )


@case()
def truncation_turned_off(world: World) -> Any:
    return Symbol(LONG).query("Which?", prompt=LONG, truncation_percentage=1.0)


OPERATIONS: dict[str, Callable[[], Any]] = {
    "equals": lambda: Symbol("one", semantic=True) == "1",
    "contains": lambda: "colour" in Symbol(SKY, semantic=True),
    "plus": lambda: Symbol("one", semantic=True) + "two",
    "translate": lambda: Symbol(SKY).translate("German"),
    "summarize": lambda: Symbol(SKY).summarize(),
    "extract": lambda: Symbol(SKY).extract("colour"),
    "choice": lambda: Symbol(SKY).choice(["grey", "red"], default="red"),
    "isinstanceof": lambda: Symbol(SKY).isinstanceof("sentence"),
    "map": lambda: Symbol(["red", "green"]).map("into German"),
    "interpret": lambda: Symbol("2 + 2").interpret(),
}


@cases(OPERATIONS)
def operation(world: World, operate: Callable[[], Any]) -> Any:
    return operate()


@cases(
    {
        "data_uri": f"data:image/png;base64,{base64.b64encode(png()).decode()}",
        "url": "https://example.invalid/picture.png",
        "file": "{directory}/picture.png",
        "frames_of_a_file": "frames:2:{directory}/picture.png",
    }
)
def vision_by(world: World, source: str) -> Any:
    (world.tmp_path / "picture.png").write_bytes(png())
    picture = source.replace("{directory}", str(world.tmp_path))
    return Symbol(f"What is in <<vision:{picture}:>> here?").query("Describe it.")


@cases(
    {"a_missing_file": "/no/such/picture.png", "too_many_frames": "frames:100:/picture.png"},
    silent=True,
)
def vision_fails_by(world: World, source: str) -> Any:
    return Symbol(f"What is in <<vision:{source}:>> here?").query("Describe it.")


RAW_INPUTS: dict[str, Any] = {
    "text": "Which colour?",
    "message": {"role": "user", "content": "Which colour?"},
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Which colour?"},
    ],
    "conversation": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Which colour?"},
        {"role": "assistant", "content": "Grey."},
        {"role": "user", "content": "And now?"},
    ],
    "parts": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Which colour?"}]},
    ],
    "a_system_prompt_only": [{"role": "system", "content": "Be brief."}],
}

BAD_RAW_INPUTS: dict[str, Any] = {
    "wrong_content": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": ["Which colour?"]},
    ],
    "empty_text": "",
    "empty_list": [],
}


@cases(BAD_RAW_INPUTS, silent=True)
@cases(RAW_INPUTS)
def raw_input_of(world: World, message: Any) -> Any:
    @core.prompt(message=message)  # type: ignore[untyped-decorator]
    def ask(_self: Any) -> Any: ...

    # Not a string as under this module's future import, or symbolicai does not know the type.
    ask.__annotations__["return"] = str
    return ask(Symbol(SKY))


@cases(
    {"text": {}, "metadata": {"return_metadata": True}, "a_parameter": {"temperature": 0.5}},
    silent=True,
)
def preview_of(world: World, keywords: dict[str, Any]) -> Any:
    preview = Symbol(SKY).query("Which colour?", preview=True, **keywords)
    return preview, str(preview)
