"""What a second prompt changed."""

from intaglio.analyse.choice.pairs import find_pair as find

__all__ = ["find"]
