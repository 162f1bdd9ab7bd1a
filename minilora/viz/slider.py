"""A slider through pictures, as self-contained HTML."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from .axes import alt, need

MOST = 120_000  # bytes of an SVG figure; a larger one becomes a PNG

STYLE = """<style>
.minilora-stepper { margin: 1em 0; }
.minilora-stepper .steps { display: flex; gap: .5em; align-items: center; max-width: 34em; }
.minilora-stepper input { flex: 1; min-width: 6em; }
.minilora-stepper button { font: inherit; padding: .1em .7em; }
.minilora-stepper figure { margin: .5em 0; overflow-x: auto; }
.minilora-stepper img { max-width: max(100%, 30em); height: auto; }
.minilora-stepper .caption { min-height: 3em; margin: .5em 0; }
.minilora-stepper [hidden] { display: none; }
</style>"""

SCRIPT = """<script>
for (const root of document.querySelectorAll(".minilora-stepper:not([data-ready])")) {
  root.dataset.ready = "";
  const frames = [...root.querySelectorAll("figure")];
  const steps = root.querySelector(".steps"), caption = root.querySelector(".caption");
  const range = steps.querySelector("input"), [back, next] = steps.querySelectorAll("button");
  const show = () => {
    const i = Number(range.value);
    frames.forEach((frame, j) => { frame.hidden = i !== j; });
    caption.textContent = frames[i].querySelector("figcaption").textContent;
    range.setAttribute("aria-valuetext", `${i + 1} of ${frames.length}`);
    steps.querySelector("output").textContent = `${i + 1} / ${frames.length}`;
    const box = frames[i].getBoundingClientRect();
    const now = frames[i].querySelector("[data-now]")?.getBoundingClientRect() ?? box;
    frames[i].scrollLeft += now.x + now.width / 2 - box.x - box.width / 2;
    back.disabled = i === 0;
    next.disabled = i === frames.length - 1;
  };
  const move = (by) => { range.value = Number(range.value) + by; show(); };
  range.addEventListener("input", show);
  back.addEventListener("click", () => move(-1));
  next.addEventListener("click", () => move(1));
  frames.forEach((frame) => { frame.querySelector("figcaption").hidden = true; });
  steps.hidden = caption.hidden = false;
  show();
}
</script>"""


@dataclass(frozen=True, repr=False)
class Stepper:
    """Frames behind a slider; str() is all of them as text."""

    frames: tuple[tuple[str, str, str], ...]  # caption, HTML, text
    title: str
    start: int

    def __repr__(self) -> str:
        count, parts = len(self.frames), [self.title] if self.title else []
        for i, (caption, _, text) in enumerate(self.frames):
            parts.append(f"[{i + 1}/{count}] {caption}" + (f"\n{text}" if text else ""))
        return "\n\n".join(parts)

    def _repr_html_(self) -> str:
        title = escape(self.title or "steps")
        heading = f"<p><strong>{title}</strong></p>" if self.title else ""
        figures = "".join(
            f'<figure tabindex="0">{html}<figcaption>{escape(caption)}</figcaption></figure>'
            for caption, html, _ in self.frames
        )
        return f"""{STYLE}
<div class="minilora-stepper" role="group" aria-label="{title}">
{heading}
<div class="steps" hidden>
<button type="button" aria-label="previous step">←</button>
<input type="range" min="0" max="{len(self.frames) - 1}" value="{self.start}" aria-label="{title}">
<button type="button" aria-label="next step">→</button>
<output></output>
</div>
<p class="caption" aria-live="polite" hidden></p>
{figures}
</div>
{SCRIPT}"""


def stepper(frames: Sequence[tuple[str, Any]], title: str = "", start: int = 0) -> Stepper:
    """Return a slider through frames (caption, content) that shows frame `start` first.

    content: a graph, HTML or SVG (a string that begins with "<"), text, or matplotlib axes or a
    figure, which is closed. Without JavaScript all frames are shown, one below the other.
    Raises ValueError if there are no frames or `start` is out of range.
    """
    if not -len(frames) <= start < len(frames):
        raise ValueError(f"stepper: start {start} is out of range for {len(frames)} frames")
    rendered = tuple((caption, *_frame(caption, content)) for caption, content in frames)
    return Stepper(rendered, title, start % len(rendered))


def _frame(caption: str, content: Any) -> tuple[str, str]:
    """Return the content as (HTML, text)."""
    if hasattr(content, "svg"):
        return content.svg, str(content)
    if content is None or isinstance(content, str):
        text = content or "(figure left out)"
        return (text, "") if text.lstrip().startswith("<") else (f"<pre>{escape(text)}</pre>", text)
    if isinstance(content, list):  # axes of one figure
        content = content[0]
    figure = getattr(content, "figure", content)
    if not hasattr(figure, "savefig"):
        raise TypeError(f"stepper: the content of {caption!r} is a {type(content).__name__}: "
                        "give a graph, a figure or text")
    words = alt(figure)
    return f'<img alt="{escape(words)}" src="{_embedded(figure)}">', f"(figure: {words})"


def _embedded(figure: Any) -> str:
    """Return the figure as a data URL, and close it."""
    plt, file = need(), io.BytesIO()
    with plt.rc_context({"svg.hashsalt": "minilora"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    kind = "svg+xml"
    if len(file.getvalue()) > MOST:
        file, kind = io.BytesIO(), "png"
        figure.savefig(file, format="png", dpi=150)
    plt.close(figure)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
