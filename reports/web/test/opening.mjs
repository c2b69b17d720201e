// node opening.mjs PAGE.html [TIMES]: how long headless Chromium takes to open a dashboard, each time
// in a new browser: seconds from the start of the navigation until its first picture is painted,
// and until all runs are, and how long the main thread was busy for it. Measures what docs/alarms.md tells.
import { resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import puppeteer from 'puppeteer-core';
import { until } from './browser.mjs';

const [page, times = '5'] = process.argv.slice(2);
if (!page || !(Number(times) > 0)) {
  console.error('usage: node opening.mjs PAGE.html [TIMES]');
  process.exit(2);
}
const median = (x) => x.sort((a, b) => a - b)[x.length >> 1].toFixed(2);
const painted = [],
  read = [];
for (let k = 0; k < Number(times); ++k) {
  const browser = await puppeteer.launch({
    executablePath: process.env.CHROMIUM || '/usr/bin/chromium',
    args: ['--no-sandbox', '--disable-gpu'],
  });
  try {
    const tab = await browser.newPage();
    await tab.setViewport({ width: 1280, height: 900 });
    // The page notes the times itself: a driver gets no answer while the main thread is busy.
    await tab.evaluateOnNewDocument(() => {
      window.times = {};
      const note = (name) => {
        window.times[name] = 0;
        requestAnimationFrame(() =>
          setTimeout(() => (window.times[name] = performance.now() / 1000)),
        );
      };
      new MutationObserver(() => {
        if (!('drawn' in window.times) && document.querySelector('.chart canvas, .chart svg'))
          note('drawn');
        if ('whole' in window.times || !document.querySelector('.sortable')) return;
        if (!/being read/.test(document.querySelector('.when').textContent)) note('whole');
      }).observe(document, { childList: true, subtree: true, characterData: true });
    });
    await tab.goto(pathToFileURL(resolve(page)).href);
    await until(tab, () => window.times.drawn > 0 && window.times.whole > 0);
    const { drawn, whole } = await tab.evaluate(() => window.times),
      { TaskDuration: busy } = await tab.metrics();
    if (await tab.$eval('.when', (e) => e.textContent.includes('cannot be read')))
      throw new Error(`${page}: earlier runs cannot be read`);
    painted.push(drawn);
    read.push(whole);
    console.log(
      `drawn after ${drawn.toFixed(2)} s, with all runs after ${whole.toFixed(2)} s, busy for ${busy.toFixed(2)} s`,
    );
  } finally {
    await browser.close();
  }
}
console.log(
  `medians of ${times}: drawn after ${median(painted)} s, with all runs after ${median(read)} s`,
);
