from inference_backend.kv_pool import KvPool


def sequence(tokens, letter="a"):
    return "".join(f"{letter}{index:03d}" for index in range(tokens)).encode()


def run(pool, text, salt=0):
    """A request that comes, is computed and goes; the tokens it found cached."""
    tokens = len(text) // 4
    pages = pool.lock_prefix(text, salt, tokens - 1)
    cached = len(pages) * pool.page_tokens
    assert pool.take(tokens - cached)
    pool.extend(pages, text, salt)
    pool.private -= tokens - len(pages) * pool.page_tokens
    pool.unlock(pages)
    assert pool.private == 0 and pool.used == 0
    return cached


def test_a_prefix_is_found_by_full_pages_and_never_whole():
    pool = KvPool(1_000, 16)
    assert run(pool, sequence(40)) == 0
    assert run(pool, sequence(40)) == 32
    assert run(pool, sequence(32)) == 16  # the last token is always computed
    assert run(pool, sequence(100)) == 32
    assert run(pool, sequence(100), salt=7) == 0


def test_the_end_of_the_oldest_chain_goes_first():
    pool = KvPool(128, 16)
    run(pool, sequence(64, "a"))
    run(pool, sequence(64, "b"))
    assert pool.free == 0 and pool.evictable == 128
    run(pool, sequence(32, "c"))  # two pages of chain a go
    assert run(pool, sequence(64, "b")) == 48
    pool.flush()
    assert pool.free == 128 and pool.evictable == 0


def test_locked_pages_are_not_evicted():
    pool = KvPool(64, 16)
    run(pool, sequence(64))
    pages = pool.lock_prefix(sequence(64), 0, 64)
    assert len(pages) == 4 and pool.used == 64
    assert not pool.take(1)
    pool.unlock(pages)
    assert pool.take(17) and pool.evictable == 32


def test_the_same_text_computed_twice_is_kept_once():
    pool = KvPool(100, 10)
    first, second = [], []
    assert pool.take(20) and pool.take(20)
    pool.extend(first, sequence(20), 0)
    pool.extend(second, sequence(20), 0)
    assert pool.private == 0 and pool.free == 80 and pool.used == 20
    pool.unlock(first)
    assert pool.used == 20
    pool.unlock(second)
    assert pool.used == 0 and pool.evictable == 20
