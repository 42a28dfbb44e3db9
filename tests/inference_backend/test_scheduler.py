"""The scheduler in virtual time: nothing here sleeps."""

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_backend.profiles import PROFILES
from inference_backend.scheduler import DONE, Request, Scheduler

TINY = PROFILES["tiny"]
QWEN = PROFILES["qwen3-8b-h100"]


class Run:
    """A scheduler and its clock; remembers when each request got how many tokens."""

    def __init__(self, profile=TINY, **options):
        self.scheduler = Scheduler(profile, **options)
        self.now = 0.0
        self.tokens = {}
        self.ended = {}
        self.duration = None

    def submit(self, name, prompt_tokens, max_tokens, prompt=None):
        prompt = prompt if prompt is not None else (f"{name:>4}" * prompt_tokens).encode()
        request = Request(name, prompt, max_tokens)
        assert self.scheduler.submit(request, self.now)
        self.tokens[name] = []
        return request

    def step(self):
        self.duration, events = self.scheduler.step(self.now)
        for request, tokens, finish in events:
            if tokens:
                self.tokens[request.rid].append((self.now, tokens))
            if finish:
                self.ended[request.rid] = (finish, self.now)
        self.now += self.duration or 0.0
        return self.duration

    def drain(self):
        while self.step() is not None:
            pass
        kv = self.scheduler.kv
        assert kv.private == 0 and kv.used == 0
        return self


def test_one_request_pays_its_prefill_then_a_decode_step_per_token():
    run = Run(QWEN)
    run.submit("a", 1_000, 4)
    run.drain()
    ttft = QWEN.prefill_s([(1_000, 0)])
    at = [when for when, _ in run.tokens["a"]]
    assert at[0] == pytest.approx(ttft)
    for index in range(1, 4):
        assert at[index] - at[index - 1] == pytest.approx(QWEN.decode_s(1, 1_000 + index - 1))
    assert run.ended["a"] == ("length", at[3])


def test_a_prefill_goes_before_the_decode_and_everyone_waits_for_it():
    run = Run(QWEN)
    run.submit("old", 10, 50)
    for _ in range(5):
        run.step()
    run.submit("new", 4_000, 2)
    run.drain()
    gaps = [b - a for (a, _), (b, _) in zip(run.tokens["old"], run.tokens["old"][1:], strict=False)]
    assert max(gaps) == pytest.approx(QWEN.prefill_s([(4_000, 0)]) + QWEN.decode_s(2, 4_014), rel=0.01)
    assert sorted(gaps)[-2] < 0.008


def test_a_long_prompt_is_cut_into_chunks():
    run = Run(TINY)  # chunks of 2,048
    run.submit("a", 5_000, 1)
    durations = []
    while (duration := run.step()) is not None:
        durations.append(duration)
    parts = [(2_048, 0), (2_048, 2_048), (904, 4_096)]
    assert durations == pytest.approx([TINY.prefill_s([part]) for part in parts])


def test_a_chunk_is_shared_first_come_first_served():
    run = Run(TINY)
    for name, size in (("a", 1_500), ("b", 1_500), ("c", 100)):
        run.submit(name, size, 1)
    run.step()
    run.step()
    assert list(run.ended) == ["a"]
    run.step()
    assert list(run.ended) == ["a", "b", "c"]


def test_no_more_run_than_max_running_and_the_queue_refuses_what_is_over():
    run = Run(TINY, max_running=2, max_queued=3)
    for name in "abc":
        run.submit(name, 10, 20)
    assert not run.scheduler.submit(Request("d", b"d" * 40, 20), run.now)
    run.step()
    loads = run.scheduler.loads()
    run.step()
    assert (loads["num_waiting_reqs"], run.scheduler.loads()["num_running_reqs"]) == (1, 2)
    run.drain()
    assert run.ended["c"][1] > run.ended["a"][1]
    assert run.scheduler.totals.queue_full == 1 and run.scheduler.totals.requests == 3


def test_a_prefix_in_the_cache_shortens_the_prefill():
    run = Run(QWEN, page_tokens=64)
    prompt = bytes(Random(0).choices(range(97, 123), k=8_000))
    cold = run.submit("cold", 0, 1, prompt)
    run.drain()
    begin = run.now
    warm = run.submit("warm", 0, 1, prompt + b" and more")
    run.drain()
    assert cold.cached_tokens == 0 and warm.cached_tokens == 2_000 // 64 * 64
    uncached = warm.prompt_tokens - warm.cached_tokens
    assert run.ended["warm"][1] - begin == pytest.approx(QWEN.prefill_s([(uncached, warm.cached_tokens)]))


def test_the_next_turn_of_a_conversation_finds_the_answer_cached():
    run = Run(TINY, page_tokens=16)
    first = run.submit("1", 0, 100, b"q" * 400)
    run.drain()
    again = run.submit("2", 0, 1, first.sequence(200) + b"next")
    run.drain()
    assert again.cached_tokens == 192  # 199 tokens have KV: the last was never fed back


def test_an_abort_ends_the_request_at_the_next_step_wherever_it_is():
    run = Run(TINY, max_running=1)
    running, waiting = run.submit("r", 10, 1_000), run.submit("w", 10, 10)
    chunked = Run(TINY).scheduler
    for _ in range(4):
        run.step()
    run.scheduler.abort(running)
    run.scheduler.abort(waiting)
    run.step()
    assert run.ended == {"r": ("abort", run.now), "w": ("abort", run.now)}
    assert run.step() is None
    run.scheduler.abort(running)  # too late, and harmless
    assert run.step() is None and run.scheduler.totals.aborted == 2

    request = Request("c", b"x" * 20_000, 10)
    assert chunked.submit(request, 0)
    chunked.step(0)
    chunked.abort(request)
    assert chunked.step(1) == (None, [(request, 0, "abort")])
    assert chunked.kv.used == 0 and request.phase == DONE


def test_when_kv_runs_out_the_request_with_the_least_output_is_retracted_and_still_completes():
    run = Run(TINY, kv_tokens=1_000, page_tokens=10)
    run.submit("a", 200, 500)
    run.step()
    run.submit("b", 200, 500)
    run.submit("c", 100, 500)
    run.drain()
    assert run.scheduler.totals.retracted > 0
    assert [name for name, (finish, _) in run.ended.items() if finish == "length"][0] == "a"
    assert all(sum(count for _, count in run.tokens[name]) == 500 for name in "abc")


def test_speculation_emits_bursts_and_costs_more_per_step():
    run = Run(TINY, acceptance=(0.75, 0.65, 0.58), seed=3)
    run.submit("a", 10, 4_000)
    run.drain()
    bursts = [count for _, count in run.tokens["a"]][1:]
    assert sum(bursts) == 3_999 and set(bursts) == {1, 2, 3, 4}
    assert sum(bursts) / len(bursts) == pytest.approx(1 + 0.75 + 0.75 * 0.65 + 0.75 * 0.65 * 0.58, rel=0.05)
    first, second = run.tokens["a"][0][0], run.tokens["a"][1][0]
    assert second - first == pytest.approx(1.3 * TINY.decode_s(1, 10))


def test_decode_moments_give_the_decode_law_back():
    run = Run(QWEN)
    for index in range(16):
        run.submit(f"{index}", 4, 10 + 10 * index)
    run.drain()
    n, sum_b, sum_t, sum_bb, sum_bt, tokens = run.scheduler.loads()["decode_moments"]
    slope = (n * sum_bt - sum_b * sum_t) / (n * sum_bb - sum_b**2)
    base = (sum_t - slope * sum_b) / n
    assert base == pytest.approx(6_620, rel=0.01)
    assert 7 < slope < 20  # the law's 7.3 us per request, and the context each one holds
    assert tokens == sum(9 + 10 * index for index in range(16))


def test_loads_count_what_waits_and_what_is_held():
    run = Run(TINY, max_running=1, page_tokens=16)
    run.submit("a", 160, 50)
    run.submit("b", 320, 50)
    run.step()
    run.step()
    loads = run.scheduler.loads()
    assert loads["num_running_reqs"] == 1 and loads["num_waiting_reqs"] == 1
    assert loads["num_waiting_uncached_tokens"] == 320
    assert 160 <= loads["num_used_tokens"] <= 162
    assert loads["total_prefill_uncached_tokens"] == 160
    assert loads["total_prefill_busy_us"] == pytest.approx(TINY.prefill_s([(160, 0)]) * 1e6, abs=1)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.booleans(), st.sampled_from([1, 16, 64]))
def test_whatever_happens_the_kv_pool_is_whole_at_the_end(seed, speculate, page_tokens):
    random = Random(seed)
    acceptance = (0.75, 0.65, 0.58) if speculate else ()
    run = Run(TINY, kv_tokens=2_048, page_tokens=page_tokens, acceptance=acceptance, seed=seed, max_queued=50)
    scheduler = run.scheduler
    base = bytes(random.choices(range(97, 123), k=4_000))
    live = {}
    for index in range(60):
        if random.random() < 0.6:
            prompt = base[: random.randrange(1, 4_000)] + random.choice([b"", b"%d" % index])
            request = Request(str(index), prompt, random.randrange(1, 400))
            if scheduler.submit(request, run.now):
                live[request.rid] = request
                run.tokens[request.rid] = []
        if live and random.random() < 0.1:
            scheduler.abort(random.choice(list(live.values())))
        for _ in range(random.randrange(20)):
            run.step()
            assert scheduler.kv.free >= 0 and scheduler.kv.private >= 0
            assert len(scheduler.running) <= scheduler.max_running
    run.drain()
    assert set(run.ended) == set(live)
    for rid, request in live.items():
        emitted = sum(count for _, count in run.tokens[rid])
        assert emitted == request.generated
        assert run.ended[rid][0] == "abort" or emitted == request.max_tokens
