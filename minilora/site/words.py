"""What a search looks through: the text under each heading of a page."""

from __future__ import annotations

from html.parser import HTMLParser


class _Text(HTMLParser):
    """The text under each heading or entry that has an anchor."""

    SILENT = ("script", "style", "annotation", "button", "svg")
    APART = (
        "p",
        "li",
        "dt",
        "dd",
        "pre",
        "td",
        "figcaption",
        "summary",
    )  # no word goes over its end

    def __init__(self) -> None:
        super().__init__()
        self.found: list[list[str]] = []  # heading, anchor, text
        self.silent, self.into, self.inside, self.main = 0, 2, "", False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        self.main = self.main or tag == "main"
        self.silent += tag in self.SILENT or told.get("class") == "anchor"
        if self.main and tag in ("h1", "h2", "h3", "dt") and told.get("id"):
            self.found.append(["", str(told["id"]), ""])
            self.into, self.inside = 0, tag
        if told.get("class") == "signature":
            self.into = 2  # a heading is the name alone

    def handle_endtag(self, tag: str) -> None:
        if self.silent and (tag in self.SILENT or tag == "a"):
            self.silent -= 1
        if tag == self.inside:
            self.into, self.inside = 2, ""
        if tag in self.APART:
            self.handle_data(" ")
        self.main = self.main and tag != "main"

    def handle_data(self, data: str) -> None:
        if self.found and self.main and not self.silent:
            self.found[-1][self.into] += data


def words(name: str, page: bytes) -> list[list[str]]:
    """[page, heading, address, text] of each part of a page."""
    parser = _Text()
    parser.feed(page.decode())
    tidy = [[" ".join(part.split()) for part in found] for found in parser.found]
    return [[tidy[0][0], heading, f"{name}#{anchor}", text] for heading, anchor, text in tidy]
