// Reads a JSON list of custom resources on stdin; prints a JSON list with null for each that its
// model accepts, the reason for each that it refuses, and "unknown" for kinds without a model.
//
// Two judges for each: the compiled schema for values, and the TypeScript type for fields, because
// the schemas take unknown fields without a word.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const PACKAGES = {
  "cert-manager.io": "cert-manager",
  "postgresql.cnpg.io": "cloudnative-pg",
  "external-secrets.io": "external-secrets",
  "gateway.networking.k8s.io": "gateway-api",
  "monitoring.coreos.com": "prometheus-operator",
};
const root = process.argv[2];
const ts = createRequire(pathToFileURL(join(root, "package.json")))("typescript");

const packageOf = (object) => PACKAGES[object.apiVersion.split("/")[0]];

async function values(object) {
  const file = join(root, "node_modules/@kubernetes-models", packageOf(object), object.apiVersion, `${object.kind}.js`);
  try {
    const Model = (await import(pathToFileURL(file)))[object.kind];
    new Model(object).validate();
    return null;
  } catch (error) {
    return error.message;
  }
}

// One declaration on each line, so that a line names its object.
function fields(objects) {
  const directory = mkdtempSync(join(root, "check-"));
  const file = join(directory, "objects.ts");
  const lines = objects.map((object, n) => {
    const type = `import("@kubernetes-models/${packageOf(object)}/${object.apiVersion}").I${object.kind}`;
    return `export const o${n}: ${type} = ${JSON.stringify(object)};`;
  });
  writeFileSync(file, lines.join("\n"));
  const options = {
    noEmit: true, strict: true, skipLibCheck: true, types: [],
    target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.Node16, moduleResolution: ts.ModuleResolutionKind.Node16,
  };
  const faults = objects.map(() => null);
  for (const found of ts.getPreEmitDiagnostics(ts.createProgram([file], options))) {
    const text = ts.flattenDiagnosticMessageText(found.messageText, " ");
    if (!found.file) throw new Error(text);
    const { line } = found.file.getLineAndCharacterOfPosition(found.start);
    faults[line] ??= text;
  }
  rmSync(directory, { recursive: true });
  return faults;
}

const objects = JSON.parse(readFileSync(0, "utf8"));
const known = objects.filter(packageOf);
const typed = new Map(fields(known).map((fault, n) => [known[n], fault]));
const verdicts = [];
for (const object of objects) {
  verdicts.push(packageOf(object) ? ((await values(object)) ?? typed.get(object)) : "unknown");
}
console.log(JSON.stringify(verdicts));
