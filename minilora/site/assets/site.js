// The theme, the search, the copy buttons, the cover's slider. Every page works without it.
"use strict";

const one = (selector, root = document) => root.querySelector(selector);
const make = (tag, text = "") => Object.assign(document.createElement(tag), { textContent: text });

// Light or dark: the system's setting until the reader chooses.
{
  const root = document.documentElement, button = one("#theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const name = () => { button.textContent = dark() ? "Light" : "Dark"; };
  button.setAttribute("title", "Light or dark page");
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.setItem("theme", root.dataset.theme); } catch { /* the choice lasts for this page only */ }
    name();
  });
  system.addEventListener("change", name);
  name();
  button.hidden = false;
}

// Search: the index is search.js, loaded as a script when the box is first used. Enter opens the
// first result; the arrow keys move through the results.
{
  const form = one("#search"), box = one("input", form), results = one("#results");
  const list = one("ol", results), message = one("p", results), MOST = 20;
  let opening = false; // Enter was pressed before the index was there
  const load = () => {
    if (one("script[data-words]")) return;
    const script = make("script");
    script.dataset.words = "";
    script.src = "search.js";
    script.addEventListener("load", search);
    document.head.append(script);
  };
  const marked = (text, words) => {
    const part = document.createDocumentFragment(), lower = text.toLowerCase();
    for (let at = 0; at < text.length;) {
      const hits = words.map((word) => [lower.indexOf(word, at), word]).filter(([i]) => i >= 0);
      const [next, word] = hits.sort(([i], [j]) => i - j)[0] ?? [text.length, ""];
      part.append(text.slice(at, next), ...(word ? [make("mark", text.slice(next, next + word.length))] : []));
      at = next + word.length || text.length;
    }
    return part;
  };
  const around = (text, words) => {
    const first = Math.min(...words.map((word) => text.toLowerCase().indexOf(word)).filter((i) => i >= 0), text.length);
    const from = Math.max(0, first - 50);
    return (from ? "…" : "") + text.slice(from, from + 160);
  };
  const score = ([, heading, , text], words) => {
    let sum = 0;
    for (const word of words) {
      const title = heading.toLowerCase().indexOf(word), at = text.toLowerCase().indexOf(word);
      if (title < 0 && at < 0) return 0;
      sum += title === 0 ? 8 : title > 0 ? 5 : 1;
    }
    return sum;
  };
  const search = () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    results.hidden = !words.length;
    if (!words.length || typeof SEARCH === "undefined") return;
    const hits = SEARCH.map((entry) => [score(entry, words), entry]).filter(([n]) => n);
    hits.sort(([n], [m]) => m - n);
    message.textContent = hits.length > MOST ? `${hits.length} results, the first ${MOST}:`
      : hits.length ? `${hits.length} ${hits.length === 1 ? "result" : "results"}:` : "No results.";
    list.replaceChildren(...hits.slice(0, MOST).map(([, [page, heading, address, text]]) => {
      const item = make("li"), link = make("a"), small = make("small");
      link.href = address;
      link.append(marked(heading === page ? page : `${page}: ${heading}`, words));
      small.append(marked(around(text, words), words));
      item.append(link, small);
      return item;
    }));
    if (opening) open();
  };
  const open = () => {
    opening = typeof SEARCH === "undefined";
    if (!opening) one("a", list)?.click();
  };
  const shut = () => { results.hidden = true; };
  box.addEventListener("focus", load);
  box.addEventListener("input", () => { opening = false; search(); });
  list.addEventListener("click", shut);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (box.value.trim()) open();
  });
  form.parentElement.addEventListener("keydown", (event) => {
    const way = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    const links = [box, ...list.querySelectorAll("a")], at = links.indexOf(event.target);
    if (!way || at < 0 || results.hidden) return;
    event.preventDefault();
    links[Math.max(0, Math.min(links.length - 1, at + way))].focus();
  });
  document.addEventListener("click", (event) => {
    if (!event.target.closest("header")) shut();
  });
  document.addEventListener("keydown", (event) => {
    const typing = /^(input|textarea|select)$/i.test(event.target.tagName);
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      box.focus();
    }
    if (event.key === "Escape" && !results.hidden) {
      shut();
      box.focus();
    }
  });
}

// A copy button at each block of code.
for (const input of document.querySelectorAll(".input")) {
  const button = make("button", "Copy"), code = one("code", input);
  button.type = "button";
  button.setAttribute("aria-label", "Copy this code");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch { // an old browser, or a page opened from a file
      getSelection().selectAllChildren(code);
      document.execCommand("copy");
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  input.append(button);
}

// Boxes that scroll sideways can also be scrolled with the keyboard.
const scrollers = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
    else target.removeAttribute("tabindex");
  }
});
document.querySelectorAll("pre, .formula, .live, figure, table, .wide").forEach((box) => scrollers.observe(box));

// The list of names on the API page scrolls to the current one.
{
  const names = one(".all .contents");
  const follow = () => {
    const link = [...(names?.querySelectorAll("a") ?? [])].find((a) => a.hash === location.hash);
    if (link) names.scrollTop = link.offsetTop - names.clientHeight / 2;
  };
  addEventListener("hashchange", follow);
  follow();
}

// Printed pages show all answers.
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});

// The cover's slider: each panel is one tall picture with a frame for each rank.
if (one("input#rank")) {
  const rank = one("input#rank"), texts = JSON.parse(one("#ranks").textContent);
  const moving = [...document.querySelectorAll(".panels image")];
  const show = () => {
    const r = Number(rank.value);
    for (const image of moving) {
      const frame = image.width.baseVal.value;
      if (image.height.baseVal.value > frame) image.setAttribute("y", -frame * (r - 1));
    }
    const thick = 0.25 * r + 0.3; // B is r columns wide, A is r rows high
    for (const [selector, at, size] of [[".panels .B", "x", "width"], [".panels .A", "y", "height"]]) {
      one(selector).setAttribute(at, -thick - 1);
      one(selector).setAttribute(size, thick);
    }
    one("#rank-now").textContent = r;
    one("#rank-text").textContent = texts[r - 1];
  };
  rank.addEventListener("input", show);
  show();
}
