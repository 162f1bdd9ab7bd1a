"""The search index: the text under each heading of a page."""

from __future__ import annotations

from html.parser import HTMLParser


class _Text(HTMLParser):
    """The text under each heading or entry that has an anchor."""

    SKIPPED = ("script", "style", "annotation", "button", "svg")
    BLOCKS = ("p", "li", "dt", "dd", "pre", "td", "figcaption", "summary")  # words end with them

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[list[str]] = []  # heading, anchor, text
        self.skipped, self.into, self.heading, self.main = 0, 2, "", False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.main = self.main or tag == "main"
        self.skipped += tag in self.SKIPPED or attributes.get("class") == "anchor"
        if self.main and tag in ("h1", "h2", "h3", "dt") and attributes.get("id"):
            self.entries.append(["", str(attributes["id"]), ""])
            self.into, self.heading = 0, tag
        if attributes.get("class") == "signature":
            self.into = 2  # the heading is the name without the signature

    def handle_endtag(self, tag: str) -> None:
        if self.skipped and (tag in self.SKIPPED or tag == "a"):
            self.skipped -= 1
        if tag == self.heading:
            self.into, self.heading = 2, ""
        if tag in self.BLOCKS:
            self.handle_data(" ")
        self.main = self.main and tag != "main"

    def handle_data(self, data: str) -> None:
        if self.entries and self.main and not self.skipped:
            self.entries[-1][self.into] += data


def words(name: str, page: bytes) -> list[list[str]]:
    """Return [page, heading, address, text] of each part of a page."""
    parser = _Text()
    parser.feed(page.decode())
    tidy = [[" ".join(part.split()) for part in entry] for entry in parser.entries]
    return [[tidy[0][0], heading, f"{name}#{anchor}", text] for heading, anchor, text in tidy]
