"""Prompts are lines of text or JSON."""

import pytest

from routereplay.parity.prompts import encode_prompts, read_prompts


class Tokenizer:
    def encode(self, text, add_special_tokens):
        assert not add_special_tokens
        return [ord(char) for char in text]

    def apply_chat_template(self, messages, add_generation_prompt, tokenize):
        assert add_generation_prompt
        assert not tokenize
        return "".join(message["content"] for message in messages) + ">"


def write(tmp_path, *lines):
    path = tmp_path / "prompts"
    path.write_text("\n".join(lines))
    return path


def test_each_kind_of_line_becomes_turns_of_tokens(tmp_path):
    path = write(
        tmp_path,
        "ab",
        "",
        '{"prompt": "c"}',
        '{"turns": ["d", "ef"]}',
        '{"messages": [{"role": "user", "content": "g"}]}',
    )
    found = encode_prompts(Tokenizer(), read_prompts(path))
    assert ["".join(map(chr, turn)) for turns in found for turn in turns] == [
        *("ab", "c", "d", "ef", "g>")
    ]


@pytest.mark.parametrize("line", ['{"text": "a"}', '{"turns": []}', '{"turns": [1]}', '{"prompt"'])
def test_another_line_is_refused_with_its_number(tmp_path, line):
    with pytest.raises(ValueError, match=r"prompts, line 2: .*expected text or a JSON object"):
        read_prompts(write(tmp_path, "ab", line))


def test_a_file_without_prompts_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no prompt"):
        read_prompts(write(tmp_path, "", " "))
