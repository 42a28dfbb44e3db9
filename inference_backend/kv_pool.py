"""The KV memory of the simulated engine: a prefix cache of pages, and the tokens that no page holds yet.

A page is `page_tokens` of a sequence, named by a chained hash of everything up to its end. A page is locked
while a running request stands on it, else evictable. Evictable pages sit in one ordered dict, oldest release
first; a chain is released from its end, so a page is always evicted before the page it continues. Invariant:
capacity = free + private + page_tokens * pages. Pure and synchronous.
"""

from __future__ import annotations

from inference_backend.text import TOKEN_BYTES


class Page:
    """One cached page; `locks` counts the running requests whose sequence contains it."""

    __slots__ = ("key", "locks")

    def __init__(self, key: int) -> None:
        self.key = key
        self.locks = 1


class KvPool:
    """Counts tokens; stores none."""

    __slots__ = ("_evictable", "_page_bytes", "_pages", "capacity", "page_tokens", "private")

    def __init__(self, capacity: int, page_tokens: int) -> None:
        self.capacity = capacity
        self.page_tokens = page_tokens
        self.private = 0
        self._page_bytes = page_tokens * TOKEN_BYTES
        self._pages: dict[int, Page] = {}
        self._evictable: dict[int, Page] = {}

    @property
    def free(self) -> int:
        """Tokens nothing occupies."""
        return self.capacity - self.private - self.page_tokens * len(self._pages)

    @property
    def evictable(self) -> int:
        """Cached tokens that no running request stands on."""
        return self.page_tokens * len(self._evictable)

    @property
    def used(self) -> int:
        """Tokens that running requests hold."""
        return self.capacity - self.free - self.evictable

    def lock_prefix(self, sequence: bytes, salt: int, limit_tokens: int) -> list[Page]:
        """Lock and return the cached pages that `sequence` begins with, at most `limit_tokens` of them."""
        pages: list[Page] = []
        key = salt
        size = self._page_bytes
        for at in range(0, min(len(sequence), limit_tokens * TOKEN_BYTES) - size + 1, size):
            key = hash((key, sequence[at : at + size]))
            page = self._pages.get(key)
            if page is None:
                break
            if page.locks == 0:
                del self._evictable[key]
            page.locks += 1
            pages.append(page)
        return pages

    def extend(self, pages: list[Page], sequence: bytes, salt: int) -> None:
        """Turn the full pages that `sequence` has beyond `pages` from private tokens into locked pages."""
        size = self._page_bytes
        key = pages[-1].key if pages else salt
        for at in range(len(pages) * size, len(sequence) - size + 1, size):
            key = hash((key, sequence[at : at + size]))
            page = self._pages.get(key)
            if page is None:
                self._pages[key] = page = Page(key)
            else:  # computed twice: keep the one in the cache
                if page.locks == 0:
                    del self._evictable[key]
                page.locks += 1
            self.private -= self.page_tokens
            pages.append(page)

    def unlock(self, pages: list[Page]) -> None:
        """Give up a chain; what nobody else locks becomes evictable, its end first."""
        for page in reversed(pages):
            page.locks -= 1
            if page.locks == 0:
                self._evictable[page.key] = page

    def take(self, tokens: int) -> bool:
        """Make `tokens` private, evicting as needed; False and nothing taken if they do not fit."""
        if self.free < tokens:
            if self.free + self.evictable < tokens:
                return False
            while self.free < tokens:
                key = next(iter(self._evictable))
                del self._evictable[key]
                del self._pages[key]
        self.private += tokens
        return True

    def flush(self) -> None:
        """Forget every page that is not locked."""
        for key in self._evictable:
            del self._pages[key]
        self._evictable.clear()
