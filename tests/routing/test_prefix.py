"""Prompts: who computed their beginning before, and when it does not matter."""

import json
import random

import pytest
from routekit import T0, Context, build, occupy

from router.routing.prefix import CELLS, LARGE_BYTES, MAX_PROMPT_BYTES, MIN_SHARE, SMALL_BYTES, PrefixBoard, Prompt
from router.routing.spec import EndpointSpec, LimitSpec, ReplicaSpec, RouteSpec, TableSpec
from router.routing.stage import Stage, whole


def board(cells=CELLS):
    return PrefixBoard(memoryview(bytearray(cells * 8)))


def body(*texts, **parameters):
    messages = [{"role": "user", "content": text} for text in texts]
    return json.dumps({"model": "m", **parameters, "messages": messages}).encode()


def prompt(*texts, salt=b"1" * 16, **parameters):
    return Prompt(body(*texts, **parameters), salt)


LONG = ["".join(random.Random(i).choices("abcdefgh ", k=1_500)) for i in range(20)]


def test_the_next_turn_is_known_by_the_one_before():
    known = board()
    known.record(prompt(*LONG[:3]), 7)
    slot, size = known.find(prompt(*LONG[:4]))
    assert slot == 7
    assert size >= 3 * 1_500 - LARGE_BYTES


def test_what_stands_before_the_messages_does_not_matter():
    known = board()
    known.record(prompt(*LONG[:3], max_tokens=10), 7)
    assert known.find(prompt(*LONG[:3], max_tokens=99, temperature=0.25))[0] == 7


def test_endpoints_do_not_meet():
    known = board()
    known.record(prompt(*LONG[:3], salt=b"1" * 16), 7)
    assert known.find(prompt(*LONG[:3], salt=b"2" * 16)) == (-1, 0)


def test_the_longest_prefix_decides():
    known = board()
    known.record(prompt(LONG[0]), 1)
    known.record(prompt(LONG[0], LONG[1]), 2)
    known.record(prompt(LONG[0], LONG[2]), 3)
    assert known.find(prompt(LONG[0], LONG[1], LONG[5]))[0] == 2
    assert known.find(prompt(LONG[0], LONG[2], LONG[5]))[0] == 3


def test_of_a_long_body_only_the_beginning_is_looked_at():
    far = prompt(*LONG * 10)
    assert far.size == MAX_PROMPT_BYTES
    assert far.ends == sorted(far.ends)
    assert far.ends[-1] <= MAX_PROMPT_BYTES
    assert len(far.ends) <= 8 + MAX_PROMPT_BYTES // LARGE_BYTES


@pytest.mark.parametrize("raw", [b"", b"{}", b"x" * (SMALL_BYTES - 1), b'{"messages":[]}'])
def test_a_short_one_has_no_prefix(raw):
    assert Prompt(raw, b"1" * 16).hashes == []
    assert board().find(Prompt(raw, b"1" * 16)) == (-1, 0)


def test_other_prompts_are_strangers():
    known = board()
    for i in range(500):
        known.record(prompt(f"{i:05}" + LONG[i % 20] * 3), i)
    strangers = sum(known.find(prompt(f"{i:05}!" + LONG[i % 20] * 3))[0] >= 0 for i in range(500))
    assert strangers == 0


def test_cells_that_are_too_few_forget_and_do_not_lie():
    known = board(cells=64)
    for i in range(300):
        known.record(prompt(f"{i:05}" + LONG[i % 20]), i)
    wrong = [i for i in range(300) if known.find(prompt(f"{i:05}" + LONG[i % 20]))[0] not in (-1, i)]
    assert not wrong


def test_two_workers_know_the_same():
    shared = memoryview(bytearray(1024 * 8))
    PrefixBoard(shared).record(prompt(*LONG[:2]), 5)
    assert PrefixBoard(shared).find(prompt(*LONG[:2]))[0] == 5


def endpoint(count=4, **spec):
    replicas = tuple(ReplicaSpec(f"r{i}", f"http://10.0.0.{i + 1}:80", slot=i) for i in range(count))
    stage = Stage(None, "", board())
    stage.add(whole(TableSpec(1, (EndpointSpec("e", replicas, policy="prefix_affinity", **spec),), (RouteSpec("*", "/", "e"),))), T0)
    return stage.table.endpoints["e"]


def pick(one, *texts):
    return one.picker.pick(Context(prompt=prompt(*texts, salt=one.salt)), T0).replica


def test_a_conversation_stays_with_its_replica():
    one = endpoint(8)
    homes = [pick(one, *LONG[i : i + 1]) for i in range(8)]
    for turn in range(2, 5):
        for i, home in enumerate(homes):
            assert pick(one, *LONG[i : i + turn]) is home
            home.in_flight = 0
    assert one.counters.prompts == 8 * 4
    assert one.counters.known_prompts == 8 * 3


def test_a_common_beginning_that_is_too_small_a_part_decides_nothing():
    one = endpoint(8)
    home = pick(one, LONG[0])
    rest = "z" * int(1_500 / MIN_SHARE)
    assert len({pick(one, LONG[0], str(i) + rest).id for i in range(60)} - {home.id}) >= 5


def test_a_replica_that_is_loaded_beyond_its_part_is_passed_over():
    one = endpoint(4)
    home = pick(one, *LONG[:3])
    occupy(home, 10)
    one.counters.in_flight = 11
    other = pick(one, *LONG[:4])
    assert other is not home
    assert pick(one, *LONG[:5]) is other, "and the conversation has moved"


@pytest.mark.parametrize("how", ["unhealthy", "avoided", "full"])
def test_one_that_cannot_take_it_is_passed_over(how):
    one = endpoint(3, limits=LimitSpec(max_concurrency=3))
    home = pick(one, *LONG[:3])
    if how == "unhealthy":
        one.set_health(home, is_healthy=False, now=T0)
    elif how == "avoided":
        home.avoid(T0)
    else:
        occupy(home, 2)
    assert pick(one, *LONG[:4]) is not home


def test_a_routing_key_comes_first():
    one = endpoint(8)
    home = pick(one, *LONG[:3])
    keyed = {
        one.picker.pick(Context(affinity=b"k%d" % i, prompt=prompt(*LONG[:4])), T0).replica.id for i in range(40)
    }
    assert len(keyed - {home.id}) >= 5


def test_other_policies_remember_nothing():
    one = build(4).endpoints["e"]
    assert one.prefixes is None


def test_without_the_secret_nobody_knows_an_endpoints_salt():
    salts = {PrefixBoard(memoryview(bytearray(8)), secret).salt("e") for secret in (b"", b"a", b"b")}
    assert len(salts) == 3
    one = PrefixBoard(memoryview(bytearray(8)), b"a")
    assert one.salt("e") != one.salt("f")
    assert one.salt("e") == PrefixBoard(memoryview(bytearray(8)), b"a").salt("e")
