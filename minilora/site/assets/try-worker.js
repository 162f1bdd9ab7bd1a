// Python for the page "Try it". The page ends this worker to stop what runs.
"use strict";

let python, cells, drawing = false;
const tell = (message) => postMessage(message);

async function start({ pyodide, wheel }) {
  tell({ say: "Loading Python (1 of 3) ..." });
  const { loadPyodide } = await import(`${pyodide}pyodide.mjs`);
  python = await loadPyodide({ indexURL: pyodide });
  tell({ say: "Loading NumPy (2 of 3) ..." });
  let failed = "";
  await python.loadPackage("numpy", { messageCallback() {}, errorCallback(text) { failed = text; } });
  if (failed) throw new Error(failed);
  tell({ say: "Loading minilora (3 of 3) ..." });
  const answer = await fetch(wheel);
  if (!answer.ok) throw new Error(`${wheel}: ${answer.status} ${answer.statusText}`);
  python.unpackArchive(await answer.arrayBuffer(), "wheel");
  cells = python.pyimport("minilora.site.cells");
  cells.here = cells.Cells();
  tell({ ready: true });
}

// Matplotlib is large, and most cells draw nothing: it comes with the first that does.
async function drawn(code) {
  if (drawing || !/\bviz\./.test(code)) return;
  drawing = true;
  tell({ say: "Loading Matplotlib, for the figures ..." });
  try {
    await python.loadPackage("matplotlib", { messageCallback() {}, errorCallback() {} });
  } catch { /* without it, no figure is drawn */ }
}

onmessage = async ({ data }) => {
  if (data.wheel) {
    try {
      await start(data);
    } catch (error) {
      tell({ lost: String(error.message ?? error) });
    }
    return;
  }
  const { code, name, exercise } = data;
  let error = "";
  try {
    if (exercise) {
      const [verdict, solution] = cells.here.check(exercise, code).toJs();
      tell({ text: `${verdict}\n` });
      if (solution) tell({ solution });
    } else {
      await drawn(code);
      tell({ say: `Running ${name} ...` });
      error = cells.here.run(code, name, (text) => tell({ text }));
      for (const [png, alt, width] of cells.figures().toJs()) tell({ png, alt, width });
    }
  } catch (broken) { // Python itself has ended, as when its memory is full
    error = `Python has ended: ${broken.message ?? broken}`;
    tell({ broken: error });
    return;
  }
  tell({ done: true, error });
};
