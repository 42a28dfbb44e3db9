"""The model that a body names: found whole or cut off, never at another depth, never without bound."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.body_head import MAX_HEAD_BYTES, MAX_LOOKS, MAX_TOKENS, BodyHead, find_model

LONG = "x" * MAX_HEAD_BYTES


def read(text, *, ended=True, piece=None):
    body = BodyHead()
    raw = text if isinstance(text, bytes) else text.encode()
    pieces = [raw[i : i + piece] for i in range(0, len(raw), piece)] if piece else [raw]
    for i, data in enumerate(pieces):
        body.add(data, ended and i == len(pieces) - 1)
        if body.is_whole:
            break
    return find_model(body)


FOUND = ['{"model":"m"}', '{"a":{"model":"inner"},"model":"m"}', ' {\n "a" : [ "model" , {"model": 1} ], "model" : "m" } ', '{"stream":true,"model":"m","x":null}']


@pytest.mark.parametrize("text", FOUND)
@pytest.mark.parametrize("piece", [None, 1, 7])
def test_found_in_a_whole_body(text, piece):
    assert read(text, piece=piece) == "m"


@pytest.mark.parametrize("text", FOUND)
def test_found_in_one_that_is_cut_off(text):
    longer = text.rstrip().removesuffix("}") + ', "messages": "' + LONG + '"}'
    assert read(longer) == "m"
    assert read(longer[: MAX_HEAD_BYTES + 10], ended=False) == "m"


def test_escapes_are_read_as_json_has_them():
    assert read('{"mod\\u0065l":"m\\u00e9\\"x"}') == 'm\u00e9"x'
    assert read('{"a":"\\"model\\":\\"no\\"","model":"m\\\\","b":"' + LONG + '"}') == "m\\"


@pytest.mark.parametrize("text", [
    "", "{}", "[]", "null", '"model"', "not json", '{"model":1}', '{"model":null}', '{"model":["m"]}', '{"model":{"model":"m"}}',
    '[{"model":"m"}]', '{"models":"m"}', '{"a":"model","b":"m"}', '{"model":"m"', b"\xff\xfe", b'{"model":"\xff"}', '{"a":{"model":"m"}}',
])  # fmt: skip
def test_not_found(text):
    assert read(text) is None


@pytest.mark.parametrize("text", ['{"model":1,', '{"model":["m"],', '[{"model":"m"},', '{"x":{"model":"m"},', '{"a":"model","b":"m",', '{"model":null,"a":"m",'])
def test_not_found_in_one_that_is_cut_off(text):
    assert read(text + '"z":"' + LONG, ended=False) is None


def test_behind_the_limit_it_is_not_looked_for():
    assert read('{"pad":"' + LONG + '","model":"m"}') is None


@pytest.mark.parametrize("text", ["[" * MAX_HEAD_BYTES, "{" * MAX_HEAD_BYTES, '{"a":' * 20_000, "," * MAX_HEAD_BYTES, '"' * MAX_HEAD_BYTES, '{"' + "\\" * MAX_HEAD_BYTES, '{"a":"' + '\\"' * MAX_HEAD_BYTES])
@pytest.mark.parametrize("ended", [True, False])
def test_hostile_text_is_bounded(text, ended):
    assert read(text, ended=ended) is None
    assert read(text[:60_000], ended=True) is None


def test_so_many_tokens_and_no_more():
    fields = ",".join(f'"k{i}":{i}' for i in range(MAX_TOKENS))
    assert read("{" + fields[: MAX_HEAD_BYTES - 100] + ',"model":"m","p":"' + LONG, ended=False) is None


@given(st.dictionaries(st.text(max_size=8), st.recursive(st.none() | st.integers() | st.text(max_size=20), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=8), max_size=6), st.text(min_size=1, max_size=20))
def test_whole_and_cut_off_agree(fields, model):
    fields.pop("model", None)
    text = json.dumps({**fields, "model": model}, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    assert read(text) == model
    assert read(text.removesuffix("}") + ',"pad":"' + LONG) == model


def test_it_is_whole_at_its_end_or_at_the_limit():
    body = BodyHead(limit=4)
    body.add(b"ab", False)
    assert not body.is_whole
    body.add(b"cdef", False)
    assert (body.is_whole, body.has_ended, body.text(), body.taken()) == (True, False, b"abcd", b"abcdef")
    empty = BodyHead()
    empty.add(b"", True)
    assert (empty.is_whole, empty.taken()) == (True, b"")


@pytest.mark.parametrize("text", ['"' * MAX_HEAD_BYTES, '\\"' * (MAX_HEAD_BYTES // 2), '"\\' * (MAX_HEAD_BYTES // 2), '{"a":"' + "\\" * MAX_HEAD_BYTES])
def test_texts_that_do_not_end_cost_one_look(text):
    """A scanner that starts anew at each quote takes ten seconds for 64 KiB, and stops everybody on the worker."""
    began = time.process_time()
    assert read(text + "x", ended=False) is None
    assert time.process_time() - began < 0.5


def test_where_a_model_may_stand():
    body = BodyHead()
    body.add(b'{"mod', False)
    assert not body.may_name_model(5)
    body.add(b'el":"m","x":"', False)
    assert body.may_name_model(13)
    body.add(b"y" * 100, False)
    assert not body.may_name_model(10)
    hostile = BodyHead()
    looks = 0
    for _ in range(1_000):
        hostile.add(b'"model",', False)
        looks += hostile.may_name_model(8)
    assert looks == MAX_LOOKS
