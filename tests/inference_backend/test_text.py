from hypothesis import given
from hypothesis import strategies as st

from inference_backend.text import generated_ids, generated_text, pack_ids, text_start, token_count


@given(st.integers(0, 4_095), st.integers(0, 10_000), st.integers(0, 9_000), st.integers(0, 9_000))
def test_windows_of_one_answer_join(start, first, left, right):
    whole = generated_text(start, first, left + right)
    assert whole == generated_text(start, first, left) + generated_text(start, first + left, right)
    assert token_count(whole) == left + right
    assert len(generated_ids(start, first, left)) == left


def test_text_needs_no_escape_and_follows_prompt_and_seed():
    text = generated_text(0, 0, 4_096)
    assert text.isascii() and b'"' not in text and b"\\" not in text
    assert text_start(b"a", 1) == text_start(b"a", 1)
    assert len({text_start(b"%d" % index, 0) for index in range(100)}) > 90
    assert text_start(b"a", 1) != text_start(b"a", 2)


def test_ids_are_a_prompt_of_as_many_tokens():
    assert token_count(pack_ids([1, 2, 70_000])) == 3
    assert token_count(b"") == 0 and token_count(b"12345") == 2
