"""What the choice of a replica does to the engines' prefix caches: conversations of several turns.

    python -m loadtest.kv                        # or: make bench-kv
    python -m loadtest.kv --policy p2c,prefix_affinity --rounds 3 --output kv.json

Simulated engines with little KV memory stand behind the router; in each round every policy serves the same
conversations, all caches empty at first, so that ratios within a round can be trusted. A conversation begins with
one of a few system prompts and repeats itself with each turn, as chat clients do. Reported: the share of prompt
tokens that the engines had cached, as they say in `usage`, and the time to the first token.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, get_args

import aiohttp
import click
import msgspec
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from inference_backend.launch import ReplicaProcess
from loadtest.percentiles import percentile, spread
from router.routing.spec import Policy

DEFAULT_POLICIES = "round_robin,p2c,engine_load,prefix_affinity"
START_S = 20.0
WORDS = ("river", "stone", "light", "paper", "cloud", "metal", "glass", "wood", "field", "engine", "letter")


class Turn(msgspec.Struct):
    """One answer: seconds to its first token, tokens of the prompt, those of them that were cached."""

    first_s: float
    prompt: int
    cached: int


class Score(msgspec.Struct):
    """One policy in one round."""

    policy: str
    hit_share: float
    p50_s: float
    p95_s: float
    turns: int
    failures: int


def text(rng: random.Random, size: int) -> str:
    """Return words of about `size` bytes."""
    words: list[str] = []
    length = 0
    while length < size:
        words.append(rng.choice(WORDS))
        length += len(words[-1]) + 1
    return " ".join(words)


async def converse(
    session: aiohttp.ClientSession, url: str, system: str, seed: int, turns: int, found: list[Turn]
) -> int:
    """Hold one conversation; return how many of its turns failed."""
    rng = random.Random(seed)
    messages = [{"role": "system", "content": system}]
    await asyncio.sleep(rng.random() * 2.0)
    for _ in range(turns):
        messages.append({"role": "user", "content": text(rng, 800 + rng.randrange(1_600))})
        body = {
            "model": "sim", "stream": True, "max_tokens": 32 + rng.randrange(64), "ignore_eos": True,
            "stream_options": {"include_usage": True}, "messages": messages,
        }  # fmt: skip
        answer = await ask(session, url, body)
        if answer is None:
            return 1
        turn, reply = answer
        found.append(turn)
        messages.append({"role": "assistant", "content": reply})
        await asyncio.sleep(rng.expovariate(1 / 0.4))
    return 0


async def ask(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> tuple[Turn, str] | None:
    """Send one turn and read its stream; None if it failed."""
    began_s = time.perf_counter()
    first_s = 0.0
    pieces: list[str] = []
    usage: dict[str, Any] = {}
    async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
        if answer.status != 200:
            return None
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            frame = msgspec.json.decode(line[6:])
            usage = frame.get("usage") or usage
            for choice in frame["choices"]:
                piece = choice["delta"].get("content")
                if piece:
                    first_s = first_s or time.perf_counter() - began_s
                    pieces.append(piece)
    if not usage or not first_s:
        return None
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return Turn(first_s, usage["prompt_tokens"], cached), "".join(pieces)


async def serve(stack: AsyncExitStack, policy: str, replicas: list[str]) -> str:
    """Start a router with `policy`; return its address."""
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    flags = [flag for url in replicas for flag in ("--replica", url)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "router", "serve", "--json", "--policy", policy, "--listen", "127.0.0.1:0",
        "--admin", "none", "--access-log", str(Path(folder) / "access.log"), *flags,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip

    async def end() -> None:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 10)
        except TimeoutError:
            process.kill()
            await process.wait()

    stack.push_async_callback(end)
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), START_S)
    return str(json.loads(line)["listen"][0])


async def play(policy: str, engines: list[str], conversations: int, turns: int, seed: int) -> Score:
    """Let one policy serve all conversations, with empty caches."""
    rng = random.Random(seed)
    systems = [text(rng, 2_000) for _ in range(6)]
    async with AsyncExitStack() as stack:
        url = await serve(stack, policy, engines)
        connector = aiohttp.TCPConnector(limit=0)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        for engine in engines:
            async with session.post(f"{engine}/flush_cache") as flushed:
                await flushed.read()
        await asyncio.sleep(1.5)  # so that every policy has what it asks the engines for
        found: list[Turn] = []
        failures = await asyncio.gather(
            *(converse(session, url, systems[i % 6], seed * 1_000 + i, turns, found) for i in range(conversations))
        )
    first = sorted(turn.first_s for turn in found)
    return Score(
        policy=policy,
        hit_share=sum(turn.cached for turn in found) / max(1, sum(turn.prompt for turn in found)),
        p50_s=percentile(first, 0.5),
        p95_s=percentile(first, 0.95),
        turns=len(found),
        failures=sum(failures),
    )


async def compare(
    policies: list[str], rounds: int, engines: int, conversations: int, turns: int, kv_tokens: int
) -> list[Score]:
    """Let each policy serve in each round, in turns."""
    scores = []
    async with AsyncExitStack() as stack:
        started = [
            await stack.enter_async_context(ReplicaProcess.simulate(time_scale=1, kv_tokens=kv_tokens, seed=1))
            for _ in range(engines)
        ]
        urls = [engine.url for engine in started]
        with Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task("conversations", total=rounds * len(policies))
            for number in range(rounds):
                for policy in policies:
                    progress.update(task, description=f"round {number + 1}: {policy}")
                    scores.append(await play(policy, urls, conversations, turns, number + 1))
                    progress.advance(task)
    return scores


def table(scores: list[Score], policies: list[str]) -> Table:
    """Return medians over the rounds with their extremes."""
    shown = Table("policy", "cached", "first token p50", "p95", "turns", "failures")
    for policy in policies:
        mine = [score for score in scores if score.policy == policy]
        cells = []
        for values, form in (
            ([100 * score.hit_share for score in mine], "{:.0f} %"),
            ([1e3 * score.p50_s for score in mine], "{:.0f} ms"),
            ([1e3 * score.p95_s for score in mine], "{:.0f} ms"),
        ):
            seen = spread(values)
            assert seen is not None
            extremes = f" ({form.format(seen.low)}-{form.format(seen.high)})" if seen.rounds > 1 else ""
            cells.append(form.format(seen.median) + extremes)
        turns, failures = sum(s.turns for s in mine), sum(s.failures for s in mine)
        shown.add_row(policy, *cells, str(turns), str(failures))
    return shown


@click.command(help=__doc__)
@click.option("--policy", default=DEFAULT_POLICIES, show_default=True, help="Which to compare, by comma.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option("--engines", default=4, show_default=True, type=click.IntRange(1, 64))
@click.option("--conversations", default=80, show_default=True, type=click.IntRange(1))
@click.option("--turns", default=6, show_default=True, type=click.IntRange(1))
@click.option("--kv-tokens", default=40_000, show_default=True, type=click.IntRange(4_096), help="Of each engine.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="JSON file for the figures.")
def main(
    policy: str, rounds: int, engines: int, conversations: int, turns: int, kv_tokens: int, output: Path | None
) -> None:
    """Compare policies."""
    policies = policy.split(",")
    unknown = sorted(set(policies) - set(get_args(Policy)))
    if unknown:
        raise click.BadParameter(f"{unknown[0]!r} is none of {', '.join(get_args(Policy))}", param_hint="--policy")
    scores = asyncio.run(compare(policies, rounds, engines, conversations, turns, kv_tokens))
    Console().print(table(scores, policies))
    if output is not None:
        output.write_bytes(msgspec.json.format(msgspec.json.encode(scores)))


if __name__ == "__main__":
    main()
