// The page "Try it": its cells and exercises, and the worker that runs them.
"use strict";

{
  const live = one("#live"), status = one("#status"), clock = one("#clock");
  const cells = [...live.querySelectorAll(".cell")];
  const SLOW = 15; // seconds after which a cell may never end
  let worker, ready, queue, running, began;

  const say = (text) => { status.textContent = text; };
  const seconds = () => (performance.now() - began) / 1000;
  const capital = (text) => text[0].toUpperCase() + text.slice(1);
  const code = (cell) => one("textarea", cell);
  const result = (cell) => one(".result", cell);
  const busy = (cell) => {
    live.classList.toggle("busy", Boolean(running = cell));
    clock.textContent = "";
  };

  // A new Python: nothing has run in it.
  const start = (words = "") => {
    worker?.terminate();
    ready = false;
    queue = [];
    busy(null);
    for (const cell of cells) delete cell.dataset.ran;
    if (location.protocol === "file:") {
      say("A browser runs no Python on a page that is opened from a file. Serve the site, and open it there: minilora tutorials serve");
      return;
    }
    began = performance.now();
    worker = new Worker("try-worker.js", { type: "module" });
    worker.onmessage = ({ data }) => heard(data, words);
    worker.onerror = (event) => lost(event.message);
    const address = (part) => new URL(part, location.href).href;
    worker.postMessage({ pyodide: address(live.dataset.pyodide), wheel: address(live.dataset.wheel) });
  };
  const lost = (why) => {
    worker.terminate();
    worker = null;
    queue = [];
    busy(null);
    say(`Python could not be loaded (${why ?? "no answer"}). Look at the connection, then press Reset all or load the page again.`);
  };

  const put = (cell, tag, text, kind) => {
    const box = make(tag, text);
    box.className = kind;
    result(cell).append(box);
    return box;
  };
  const heard = (data, words) => {
    if (data.say) say(words + data.say);
    if (data.lost) lost(data.lost);
    if (data.ready) {
      ready = true;
      say(`${words}Python is ready: ${seconds().toFixed(1)} seconds.`);
      next();
    }
    const cell = running;
    if (!cell) return;
    if (data.text) {
      const last = result(cell).lastElementChild;
      const box = last?.className === "printed" ? last : put(cell, "pre", "", "printed");
      (box.firstChild ?? box.appendChild(document.createTextNode(""))).appendData(data.text);
    }
    if (data.solution) {
      put(cell, "p", "A solution, to compare yours with:", "soft");
      put(cell, "pre", data.solution, "printed solution");
    }
    if (data.png) {
      const picture = put(cell, "figure", "", "").appendChild(make("img"));
      Object.assign(picture, { alt: data.alt, width: data.width, src: `data:image/png;base64,${data.png}` });
    }
    if (data.error) put(cell, "pre", data.error, "printed error");
    if (data.broken) {
      put(cell, "pre", data.broken, "printed error");
      start("Python has ended, and starts again. ");
    }
    if (data.done) {
      cell.dataset.ran = data.error ? "failed" : "yes";
      const words = cell.dataset.exercise ? "was checked" : data.error ? "ended with an error" : "has run";
      say(`${capital(cell.dataset.name)} ${words}: ${seconds().toFixed(1)} seconds.`);
      busy(null);
      if (data.error) queue = [];
      next();
    }
  };

  // One after the other: the cells above first, where they have not run in this Python.
  const next = () => {
    if (!ready || running || !queue.length) return;
    const cell = queue.shift();
    busy(cell);
    began = performance.now();
    result(cell).replaceChildren();
    say(cell.dataset.exercise ? `Checking ${cell.dataset.name} ...` : `Running ${cell.dataset.name} ...`);
    worker.postMessage({ code: code(cell).value, name: cell.dataset.name, exercise: cell.dataset.exercise });
  };
  const run = (cell) => {
    if (running || queue.length) {
      say(`${capital((running ?? queue[0]).dataset.name)} comes first: wait until it ends, or press Stop.`);
      return;
    }
    if (!worker) start();
    const above = cell.dataset.exercise ? [] : cells.slice(0, cells.indexOf(cell));
    queue = [...above.filter((other) => other.dataset.ran !== "yes"), cell];
    if (worker && !ready) say(`Python is loading: ${queue[0].dataset.name} runs when it is ready.`);
    next();
  };
  const stop = () => {
    if (!running) {
      queue = [];
      say(ready ? "Nothing is running." : "Python is loading, and nothing runs then.");
      return;
    }
    put(running, "p", "Stopped.", "soft");
    start("Stopped. Python starts again, without the variables of the cells. ");
  };

  // The code of an exercise is kept in this browser.
  const store = (cell, text) => {
    if (!cell.dataset.exercise) return;
    try {
      const key = `minilora-exercise-${cell.dataset.exercise}`;
      if (text === undefined) return localStorage.getItem(key);
      if (text === code(cell).defaultValue) localStorage.removeItem(key);
      else localStorage.setItem(key, text);
    } catch { /* it is kept as long as the page is open */ }
  };
  const fit = (box) => {
    box.style.height = "0";
    box.style.height = `${box.scrollHeight + box.offsetHeight - box.clientHeight}px`;
  };
  const reset = (cell) => {
    const box = code(cell);
    box.value = box.defaultValue;
    fit(box);
    store(cell, box.value);
    result(cell).replaceChildren();
  };

  for (const cell of cells) {
    const box = code(cell);
    box.value = store(cell) ?? box.defaultValue; // not what the browser remembers of a form
    fit(box);
    box.addEventListener("input", () => {
      fit(box);
      store(cell, box.value);
      if (cell.dataset.ran) cell.dataset.ran = "changed";
    });
    box.addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      if (event.ctrlKey || event.metaKey || event.shiftKey) {
        event.preventDefault();
        run(cell);
        return;
      }
      const line = box.value.slice(0, box.selectionStart).split("\n").at(-1);
      const indent = /^ */.exec(line)[0] + (/:\s*(#.*)?$/.test(line) ? "    " : "");
      if (!indent) return;
      event.preventDefault();
      document.execCommand("insertText", false, `\n${indent}`); // so that it can be undone
    });
    one(".run", cell).addEventListener("click", () => run(cell));
    one(".reset", cell)?.addEventListener("click", () => {
      reset(cell);
      say(`${capital(cell.dataset.name)} is as it was.`);
    });
  }
  addEventListener("resize", () => cells.forEach((cell) => fit(code(cell))));
  one("#stop").addEventListener("click", stop);
  one("#reset").addEventListener("click", () => {
    cells.forEach(reset);
    start("All code is as it was. ");
  });
  setInterval(() => {
    clock.textContent = running ? `${seconds().toFixed(0)} s` : "";
    if (running && seconds() > SLOW && !status.textContent.includes("Stop")) {
      say(`${capital(running.dataset.name)} takes long. Is there a loop that never ends? Stop ends it.`);
    }
  }, 500);
  start();
}
