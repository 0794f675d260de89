"""What is learned and asked is what transformers makes of the template; the token that ends a turn is found."""

from __future__ import annotations

from pathlib import Path

import chat_templates
import pytest
from chat_templates import chat_tokenizer

from taskedge.errors import InputError
from taskedge.training.data.chat_template import prompt_turns, read_chat_template

PATH = Path("x.csv")


def turns(text, response=None):
    asked = [{"role": "user", "content": text}]
    return asked if response is None else [*asked, {"role": "assistant", "content": response}]


def asked_and_learned(tokenizer, text, response, end_ids=()):
    template = read_chat_template(tokenizer, end_ids)
    prompts = template.prompts([text], PATH)
    answers = template.answers([text], prompts, [response], PATH)
    (asked,), (learned,), _ = template.conversation_ids(prompts, answers)
    assert template.response(answers[0]) == response.strip()
    return template, asked, learned


def rendered(tokenizer, conversation, *, asks=False):
    """The token ids that transformers makes of a conversation."""
    return tokenizer.apply_chat_template(conversation, add_generation_prompt=asks, return_dict=False)


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (chat_templates.GEMMA, "<end_of_turn>"),
        (chat_templates.QWEN, "<|im_end|>"),
        (chat_templates.THOUGHTS, "<|im_end|>"),
        (chat_templates.INSTRUCTION, "[SEP]"),
    ],
)
def test_the_turn_is_what_the_answer_adds(template, end):
    tokenizer = chat_tokenizer(template)
    found, asked, learned = asked_and_learned(tokenizer, "the film was", "very good")
    assert asked == rendered(tokenizer, turns("the film was"), asks=True)
    both = rendered(tokenizer, turns("the film was", "very good"))
    assert [*asked, *learned] == both[: len(asked) + len(learned)]
    assert learned[-1] == found.end_id == tokenizer.convert_tokens_to_ids(end)
    assert learned.count(found.end_id) == 1
    assert tokenizer.decode(both[len(asked) + len(learned) :]).strip() == ""
    (note,) = found.notes
    assert note.startswith("chat template: '")
    assert "PROMPT" in note
    assert end in note


def test_without_a_generation_prompt_the_header_is_part_of_the_prompt():
    tokenizer = chat_tokenizer(chat_templates.WITHOUT_REQUEST)
    found, asked, learned = asked_and_learned(tokenizer, "the film was", "very good")
    other = asked_and_learned(chat_tokenizer(chat_templates.GEMMA), "the film was", "very good")
    assert (asked, learned) == other[1:]
    assert len(found.notes) == 1


def test_a_generation_prompt_that_no_turn_begins_with_is_not_used_and_that_is_said():
    tokenizer = chat_tokenizer(chat_templates.OTHER_REQUEST)
    found, asked, learned = asked_and_learned(tokenizer, "the film was", "very good")
    assert [*asked, *learned] == rendered(tokenizer, turns("the film was", "very good"))
    assert found.end_token == "[SEP]"
    assert any("generation prompt is not used" in line for line in found.notes)


def test_thoughts_before_a_response_are_learned_but_are_no_part_of_it():
    tokenizer = chat_tokenizer(chat_templates.THOUGHTS)
    found = read_chat_template(tokenizer, ())
    (prompt,) = found.prompts(["a film"], PATH)
    (plain, thought) = found.answers(["a film"] * 2, [prompt] * 2, ["good", "<think>\nlong\n</think>\n\ngood"], PATH)
    assert plain == "<think>\n\n</think>\n\ngood<|im_end|>"
    assert thought == "<think>\nlong\n</think>\n\ngood<|im_end|>"
    assert found.response(plain) == "good"
    assert found.without_lead(" <think> </think> good ") == "good"  # as the tokenizer decodes it


def test_content_as_parts():
    tokenizer = chat_tokenizer(chat_templates.PARTS)
    found, asked, learned = asked_and_learned(tokenizer, "the film was", "very good")
    words = tokenizer("very good", add_special_tokens=False)["input_ids"]
    assert learned == [*words, found.end_id]
    assert tokenizer.decode(asked).startswith("<start_of_turn>")


def test_no_token_of_its_own_ends_a_turn():
    tokenizer = chat_tokenizer(chat_templates.WITHOUT_END)
    found, _, learned = asked_and_learned(tokenizer, "the film was", "very good")
    assert learned == [*tokenizer("very good", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    assert any("no token of its own: '[SEP]' is put there" in line for line in found.notes)
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="has a token that ends a response"):
        read_chat_template(tokenizer, ())


def test_an_end_that_only_the_base_stops_at():
    """A plain word of the vocabulary ends the turn, if the base's generation stops there."""
    tokenizer = chat_tokenizer(chat_templates.WITHOUT_END.replace("'\\n'", "' plot'").replace("\n", " plot "))
    plot = tokenizer.convert_tokens_to_ids("plot")
    assert read_chat_template(tokenizer, [plot]).end_id == plot
    assert read_chat_template(tokenizer, []).end_id == tokenizer.eos_token_id


def test_blanks_that_a_template_removes():
    tokenizer = chat_tokenizer(chat_templates.GEMMA)
    _, asked, learned = asked_and_learned(tokenizer, "  the film was ", " very good\n")
    assert (asked, learned) == asked_and_learned(tokenizer, "the film was", "very good")[1:]


def test_templates_that_refuse():
    tokenizer = chat_tokenizer("{{ raise_exception('a system turn first') }}")
    with pytest.raises(InputError, match="refuses a lone turn of the user: a system turn first"):
        read_chat_template(tokenizer, ())
    with pytest.raises(InputError, match=r"x\.csv, row 1: the base's chat template refuses a lone turn"):
        prompt_turns(tokenizer, ["a"], PATH)
    tokenizer.chat_template = (
        "{% for turn in messages %}{% if turn['role'] == 'assistant' %}{{ raise_exception('never') }}{% endif %}"
        "{{ turn['content'] }}{% endfor %}"
    )
    with pytest.raises(InputError, match="refuses a turn of the user and the assistant's answer: never"):
        read_chat_template(tokenizer, ())
    tokenizer.chat_template = "a film"
    with pytest.raises(InputError, match="does not write the texts of the turns"):
        read_chat_template(tokenizer, ())


def test_a_response_that_is_not_written_after_its_prompt():
    tokenizer = chat_tokenizer(
        "{% for turn in messages %}{{ turn['content'] }}<end_of_turn>{% endfor %}"
        "{% if messages[-1]['content'] == 'bad' %}night{% endif %}"
    )
    template = read_chat_template(tokenizer, ())
    prompts = template.prompts(["a", "b"], PATH)
    with pytest.raises(InputError, match=r"x\.csv, row 2: .* does not write this response after its prompt"):
        template.answers(["a", "b"], prompts, ["good", "bad"], PATH)


def test_the_date():
    tokenizer = chat_tokenizer("{{ strftime_now('%d %b %Y') }} " + chat_templates.GEMMA)
    assert any("the current date" in line for line in read_chat_template(tokenizer, ()).notes)
