// Loads a Pyodide and a wheel, and runs a script: node live.mjs PYODIDE WHEEL SCRIPT.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";
const [folder, wheel, script] = process.argv.slice(2);
const { loadPyodide } = await import(pathToFileURL(`${folder}/pyodide.mjs`));
const python = await loadPyodide({ indexURL: `${folder}/` });
await python.loadPackage("numpy", { messageCallback() {} });
python.unpackArchive(new Uint8Array(readFileSync(wheel)).buffer, "wheel");
try {
  await python.runPythonAsync(readFileSync(script, "utf8"));
} catch (error) { // without the text of Pyodide, in which it was thrown
  console.error(error.message);
  process.exitCode = 1;
}
