import pytest

from inference_backend.profiles import PROFILES

# Decode ms at 2,048 tokens of context for B = 1, 8, 32, 128 and prefill ms of 1k, 4k and 16k tokens, from the same
# database as the fits.
MEASURED = [
    ("qwen3-8b-h100", (6.8, 7.6, 10.0, 19.8), (24, 94, 493)),
    ("qwen3-32b-fp8-h200", (12.5, 13.1, 15.8, 29.2), (70, 248, 1404)),
    ("qwen3-32b-h200", (18.4, 19.4, 22.9, 37.5), (96, 419, 2165)),
    ("llama-3.1-70b-h100-tp4", (15.3, 15.8, 18.3, 26.4), (69, 279, 1221)),
    ("qwen3-30b-a3b-h200", (3.9, 8.3, 15.9, 23.5), (27, 68, 341)),
    ("qwen3-235b-a22b-fp8-h200-tp4", (7.4, 12.3, 21.0, 28.4), (54, 142, 620)),
    ("qwen3-coder-480b-h200-tp8", (7.3, 13.2, 28.6, 38.5), (78, 184, 689)),
    ("deepseek-v3-fp8-h200-tp8", (8.0, 13.7, 29.7, 60.6), (61, 171, 914)),
]


@pytest.mark.parametrize(("name", "decode_ms", "prefill_ms"), MEASURED)
def test_laws_meet_the_measurements(name, decode_ms, prefill_ms):
    profile = PROFILES[name]
    for batch, ms in zip((1, 8, 32, 128), decode_ms, strict=True):
        assert profile.decode_s(batch, batch * 2_048) * 1e3 == pytest.approx(ms, rel=0.06)
    for tokens, ms in zip((1_024, 4_096, 16_384), prefill_ms, strict=True):
        assert profile.prefill_s([(tokens, 0)]) * 1e3 == pytest.approx(ms, rel=0.21)


def test_laws_grow_beyond_the_table_and_with_context():
    profile = PROFILES["qwen3-30b-a3b-h200"]
    assert profile.decode_s(200, 0) > profile.decode_s(128, 0)
    assert profile.decode_s(3, 0) == pytest.approx((4.74 + 6.07) / 2 / 1e3)
    behind = profile.prefill_s([(2_048, 6_144)]) / profile.prefill_s([(2_048, 0)])
    assert 1.1 < behind < 1.4
