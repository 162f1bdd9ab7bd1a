"""A page for teachers."""


def page() -> str:
    return ""
