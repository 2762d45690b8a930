// Reads a JSON list of custom resources on stdin; prints a JSON list with null for each that its
// model accepts, the reason for each that it refuses, and "unknown" for kinds without a model.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const PACKAGES = {
  "cert-manager.io": "cert-manager",
  "postgresql.cnpg.io": "cloudnative-pg",
  "external-secrets.io": "external-secrets",
  "gateway.networking.k8s.io": "gateway-api",
  "monitoring.coreos.com": "prometheus-operator",
};
const MODULES = `${process.argv[2]}/node_modules/@kubernetes-models`;

async function judge(object) {
  const group = object.apiVersion.split("/")[0];
  const name = PACKAGES[group];
  if (!name) return "unknown";
  const file = `${MODULES}/${name}/${object.apiVersion}/${object.kind}.js`;
  let Model;
  try {
    Model = (await import(pathToFileURL(file)))[object.kind];
  } catch (error) {
    return `no model ${file}: ${error.message}`;
  }
  try {
    new Model(object).validate();
    return null;
  } catch (error) {
    return error.message;
  }
}

const objects = JSON.parse(readFileSync(0, "utf8"));
const verdicts = [];
for (const object of objects) verdicts.push(await judge(object));
console.log(JSON.stringify(verdicts));
