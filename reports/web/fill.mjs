// node fill.mjs TEMPLATE DATA.json OUT.html: writes the data into the place that a page has for
// them.
import { readFile, writeFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';

export function fill(template, json) {
  const parts = template.split('@DATA@');
  if (parts.length !== 2)
    throw new Error(`a template has one place for the data, this one has ${parts.length - 1}`);
  return parts[0] + json.replaceAll('<', '\\u003c') + parts[1];
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [template, data, out] = process.argv.slice(2);
  if (!out) {
    console.error('usage: node fill.mjs TEMPLATE DATA.json OUT.html');
    process.exit(2);
  }
  await writeFile(
    out,
    fill(await readFile(template, 'utf8'), (await readFile(data, 'utf8')).trim()),
  );
}
