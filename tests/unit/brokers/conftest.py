"""How hypothesis runs here."""

from hypothesis import settings

settings.register_profile("unit", deadline=None, max_examples=50)  # a loaded machine is slow, not wrong
settings.load_profile("unit")
