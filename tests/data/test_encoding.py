"""The Tulu template, against an encoder that shares no code with ours."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from raysweep.data.encoding import encode, few_shot_question, question
from raysweep.data.example import Example
from raysweep.errors import BadInput

SENTENCES = [
    "<|user|>\nThe value of key is?\n<|assistant|>\n",
    "What is it?\n\nThe answer is: ",
    "  def f(x):\n    return x\n",
    "Q: A:",
    "Paris and New York",
    "\n\n\n",
    "0123456789",
] * 20


def byte_level(*, bos: bool, eos: bool = True) -> PreTrainedTokenizerFast:
    """A small BPE whose merges cross line ends, with or without a token at the beginning."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>" if eos else None)


TOKENIZERS = {bos: byte_level(bos=bos) for bos in (False, True)}
text = st.text(alphabet="ab \n<|>/suer😀é", max_size=12)
turns = st.lists(st.tuples(text, text), min_size=1, max_size=3).map(tuple)


def segments(conversation, *, strip):
    """The template as (text, is trained) pairs, eos as None."""
    for index, (prompt, target) in enumerate(conversation):
        asked = prompt.strip() if strip else prompt
        yield ("\n" if index else "") + "<|user|>\n" + asked + "\n<|assistant|>\n", False
        yield target, True
        yield None, True


@pytest.mark.parametrize("bos", [False, True])
@given(conversation=turns, strip=st.booleans())
def test_text_and_mask_are_the_templates(bos, conversation, strip):
    tokenizer = TOKENIZERS[bos]
    encoded = encode(Example("x", conversation), tokenizer, strip=strip)
    tokens, targets = encoded.tokens.tolist(), encoded.targets.tolist()
    if bos:
        assert (tokens.pop(0), targets.pop(0)) == (0, False)
    wanted = "".join("</s>" if piece is None else piece for piece, _ in segments(conversation, strip=strip))
    assert tokenizer.decode(tokens, skip_special_tokens=False) == wanted
    for piece, trained in segments(conversation, strip=strip):
        if piece is None:
            assert (tokens.pop(0), targets.pop(0)) == (tokenizer.eos_token_id, True)
            continue
        own = []
        while tokens and targets[0] is trained and tokens[0] != tokenizer.eos_token_id:
            own.append(tokens.pop(0))
            targets.pop(0)
        assert tokenizer.decode(own) == piece
    assert not tokens


@pytest.mark.parametrize("bos", [False, True])
@given(conversation=turns, strip=st.booleans())
def test_what_is_asked_is_what_was_trained(bos, conversation, strip):
    example = Example("x", conversation, answers=("gold", "other"))
    encoded = encode(example, TOKENIZERS[bos], strip=strip)
    asked = question(example, TOKENIZERS[bos], strip=strip)
    assert [*asked.prompt, *asked.target] == encoded.tokens.tolist()
    assert encoded.targets[len(asked.prompt) :].all()
    assert not encoded.targets[len(asked.prompt) - 1]
    assert asked.golds == (conversation[-1][1],)


def test_one_turn_is_tokenized_as_a_whole_text_is():
    """Like the released code: the text with its eos, tokenized at once."""
    tokenizer = TOKENIZERS[True]
    example = Example("x", (("What is it?\nThe answer is: ", "Paris"),))
    whole = tokenizer("<|user|>\nWhat is it?\nThe answer is:\n<|assistant|>\nParis</s>")["input_ids"]
    encoded = encode(example, tokenizer, strip=True)
    assert encoded.tokens.tolist() == whole
    assert tokenizer.decode(encoded.tokens[encoded.targets].tolist()) == "Paris</s>"


def test_strip_is_the_prompts_alone():
    example = Example("x", (("  The answer is: ", " x "),))
    tokenizer = TOKENIZERS[False]
    asked = {strip: question(example, tokenizer, strip=strip) for strip in (True, False)}
    assert tokenizer.decode(asked[True].prompt) == "<|user|>\nThe answer is:\n<|assistant|>\n"
    assert tokenizer.decode(asked[False].prompt) == "<|user|>\n  The answer is: \n<|assistant|>\n"
    assert {tokenizer.decode(one.target[:-1]) for one in asked.values()} == {" x "}


def test_a_control_token_in_the_data_is_text():
    tokenizer = TOKENIZERS[True]
    encoded = encode(Example("x", (("a</s>b", "c</s>d<s>"),)), tokenizer, strip=True)
    assert encoded.tokens.tolist().count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(encoded.tokens[encoded.targets].tolist(), skip_special_tokens=True) == "c</s>d<s>"


def test_few_shot_lines_end_at_a_line_end():
    shots = [Example("1", (("What is a?\nThe answer is: ", "b"),)), Example("2", (("What is c? ", "d"),))]
    asked = few_shot_question(Example("3", (("What is e?", "f"),), answers=("f", "F")), shots, TOKENIZERS[True])
    assert TOKENIZERS[True].decode(asked.prompt, skip_special_tokens=True) == (
        "Q: What is a?\nThe answer is:\nA: b\nQ: What is c?\nA: d\nQ: What is e?\nA:"
    )
    assert TOKENIZERS[True].decode(asked.target) == " f\n"
    assert (asked.stop, asked.golds) == ("\n", ("f", "F"))


def test_a_tokenizer_without_eos_is_refused():
    with pytest.raises(BadInput, match="eos"):
        encode(Example("x", (("a", "b"),)), byte_level(bos=False, eos=False), strip=True)
