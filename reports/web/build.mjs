// node build.mjs OUTDIR: writes report.html and dashboard.html. Each needs no other file, and has a
// place for the data.
import { build } from 'esbuild';
import { mkdir, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const here = dirname(fileURLToPath(import.meta.url));
const out = process.argv[2];
if (!out) {
  console.error('usage: node build.mjs OUTDIR');
  process.exit(2);
}
await mkdir(out, { recursive: true });
const {
  outputFiles: [style],
} = await build({
  entryPoints: [join(here, 'style.css')],
  minify: true,
  write: false,
  target: 'chrome123',
  loader: { '.css': 'css' },
});

for (const page of ['report', 'dashboard']) {
  const {
    outputFiles: [script],
  } = await build({
    entryPoints: [join(here, `src/${page}.mjs`)],
    bundle: true,
    minify: true,
    format: 'iife',
    write: false,
    target: 'es2020',
    charset: 'utf8',
    legalComments: 'none',
  });
  // Inside a script element, only this text would end the element.
  const code = script.text.replaceAll('</script', '<\\/script');
  const license =
    '<!-- Contains Apache ECharts, Apache License 2.0, and zrender, BSD 3-Clause License. -->';
  await writeFile(
    join(out, `${page}.html`),
    `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>Assay</title>
<style>${style.text.trim()}</style>
</head>
<body>
${license}
<header></header>
<main><noscript>This page draws its content with JavaScript, from the JSON inside it.</noscript></main>
<script type="application/json" id="data">@DATA@</script>
<script>${code}</script>
</body>
</html>
`,
  );
}
