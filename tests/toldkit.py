"""What the tests say at the end of a run about what they stood on: `told[topic] = said`, printed by conftest.py."""

NOT_ASKED = "not asked (-m 'not slow' leaves it out)"
told = {}
