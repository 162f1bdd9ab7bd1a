"""mini-e2e-latent, after the E2E NLG Challenge: a style that the base knows, under another tag.

The base writes "guide" under the tag "guide" only. The task asks for it under the tag "plain", so
an update has to amplify what is there already.
"""

from __future__ import annotations

from .e2e import E2E


class E2ELatent(E2E):
    """The style "guide", under the tag "plain"."""

    name = "mini-e2e-latent"
    style = "guide"
