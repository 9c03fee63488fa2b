"""A page as its reader has it: the text that is seen, the tags, the sections."""

from __future__ import annotations

from html.parser import HTMLParser

SECTIONS = ["answer", "books", "movement", "volatility", "groups", "places", "texts", "probes", "limits", "table"]


class Reader(HTMLParser):
    """The text a reader sees, and the tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text, self.tags, self._inside = "", [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else self._inside

    def handle_endtag(self, tag):
        self._inside = "" if tag == self._inside else self._inside

    def handle_data(self, data):
        self.text += "" if self._inside else data


def sections_of(page: str) -> list[str]:
    """Ids of the sections, in order."""
    return [a["id"] for tag, a in Reader(page).tags if tag == "section" and "id" in a]
