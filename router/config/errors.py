"""What goes wrong between a writer and the store, in words for a person."""


class StoreError(Exception):
    """The store cannot do what was asked; the text says why, and what to do."""


class StoreUnavailableError(StoreError):
    """The store does not answer; later it may."""
