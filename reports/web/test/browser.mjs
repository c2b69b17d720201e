// Opens pages in headless Chromium, served from this machine. The test fails if a page logs an
// error or asks for anything outside itself.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import puppeteer from 'puppeteer-core';
import { fill } from '../fill.mjs';

const here = dirname(fileURLToPath(import.meta.url));
export const fixture = (name) =>
  JSON.parse(readFileSync(join(here, '../fixtures', `${name}.json`), 'utf8'));

export class Bench {
  // limit, in milliseconds: how long a call of the driver, or a frame, may take before the browser
  // counts as stuck. Beside other builds a browser has waited for a minute.
  constructor({ limit = 90000 } = {}) {
    this.limit = limit;
  }

  async start() {
    const chromium = process.env.CHROMIUM || '/usr/bin/chromium';
    if (!existsSync(chromium))
      throw new Error(
        `these tests need a browser and ${chromium} is not there: install chromium, or set CHROMIUM to where it is`,
      );
    this.chromium = chromium;
    this.folder = mkdtempSync(join(tmpdir(), 'assay-pages-'));
    // Bundling takes as long as several tests, so a caller that has the pages names their folder.
    this.built = process.env.ASSAY_PAGES || this.folder;
    if (this.built === this.folder)
      execFileSync(process.execPath, [join(here, '../build.mjs'), this.folder]);
    this.pages = new Map();
    this.asked = [];
    this.server = createServer((request, response) => {
      const page = this.pages.get(request.url);
      this.asked.push(request.url);
      response.writeHead(page ? 200 : 404, { 'content-type': 'text/html; charset=utf-8' });
      response.end(page ?? '');
    });
    await new Promise((done) => this.server.listen(0, '127.0.0.1', done));
    this.origin = `http://127.0.0.1:${this.server.address().port}`;
    await this.launch();
    return this;
  }

  async launch() {
    this.browser = await puppeteer.launch({
      executablePath: this.chromium,
      // On a starved machine the watchdog takes the process that draws for one that hangs, ends it,
      // and a page that was drawing may get no frame again.
      args: ['--no-sandbox', '--disable-gpu', '--disable-gpu-watchdog'],
      protocolTimeout: this.limit,
      timeout: this.limit,
    });
    await this.browser
      .defaultBrowserContext()
      .overridePermissions(this.origin, [
        'clipboard-read',
        'clipboard-write',
        'clipboard-sanitized-write',
      ]);
  }

  // Ends the browser, whatever state it is in.
  async quit() {
    const browser = this.browser,
      child = browser?.process();
    this.browser = this.page = undefined;
    if (!browser) return;
    if (child?.exitCode !== null || child?.signalCode !== null) return;
    const gone = new Promise((done) => child.once('exit', done));
    const late = setTimeout(() => child.kill('SIGKILL'), Math.min(this.limit, 20000));
    await Promise.race([browser.close().catch(() => {}), gone]);
    await gone;
    clearTimeout(late);
  }

  async stop() {
    await this.quit();
    this.server?.close();
    if (this.folder) rmSync(this.folder, { recursive: true, force: true });
  }

  // Whether the browser has stopped to answer, or the page that was opened last gets no frames.
  async stuck() {
    if (!this.browser?.connected) return true;
    if (!this.page || this.page.isClosed()) return false;
    const framed = this.page
      .evaluate(() => new Promise((done) => requestAnimationFrame(() => done(true))))
      .catch(() => false);
    let timer;
    const late = new Promise((done) => (timer = setTimeout(() => done(false), this.limit / 3)));
    const answered = await Promise.race([framed, late]);
    clearTimeout(timer);
    return !answered;
  }

  // Runs a body in the browser. A browser that a starved machine has stuck says nothing about the
  // page, so the body runs again in a new one; a failure in a browser that draws stands.
  async tried(body, tell) {
    for (let left = 2; ; --left) {
      try {
        return await body();
      } catch (error) {
        if (left === 0 || !(await this.stuck())) throw error;
        tell(`the browser was stuck and is started anew: ${error.message}`);
        await this.quit();
        await this.launch();
      }
    }
  }

  test(name, body) {
    test(name, (t) =>
      this.tried(
        () => body(t),
        (line) => t.diagnostic(line),
      ),
    );
  }

  template(name) {
    return readFileSync(join(this.built, `${name}.html`), 'utf8');
  }
  html(template, data) {
    return fill(this.template(template), JSON.stringify(data));
  }
  file(name, html) {
    const path = join(this.folder, name);
    writeFileSync(path, html);
    return path;
  }

  // Opens a page that holds the data. page.finish() reports what went wrong meanwhile, and closes
  // the page. A counted page tells by page.executions() how often the statement of its script ran
  // that ran most since the last such call: work that no other process on the machine changes.
  async open(
    template,
    data,
    {
      hash = '',
      width = 1280,
      scheme = 'light',
      before,
      file = false,
      counted = false,
      behind = '', // what stands behind the script of the page
    } = {},
  ) {
    const html = this.html(template, data).replace('</body>', () => `${behind}</body>`),
      path = `/${template}-${this.pages.size}.html`;
    this.pages.set(path, html);
    // A window of its own: of several tabs only the one in front gets frames, and which one that is may
    // change at any time after another was closed.
    const page = await this.browser.newPage({ type: 'window' });
    this.page = page;
    page.setDefaultTimeout(this.limit);
    const wrong = [];
    const url = file ? `file://${this.file(path.slice(1), html)}` : this.origin + path;
    page.on('console', (m) => {
      if (['error', 'warn'].includes(m.type())) wrong.push(`console: ${m.text()}`);
    });
    page.on('pageerror', (e) => wrong.push(`error: ${e.message}`));
    page.on('dialog', (d) => {
      wrong.push(`dialog: ${d.message()}`);
      d.dismiss();
    });
    page.on('request', (r) => {
      if (r.url().split('#')[0] !== url && !r.url().startsWith('data:'))
        wrong.push(`request: ${r.url()}`);
    });
    await page.setViewport({ width, height: 900 });
    await page.emulateMediaFeatures([
      { name: 'prefers-color-scheme', value: scheme },
      { name: 'prefers-reduced-motion', value: 'reduce' },
    ]);
    if (before) await page.evaluateOnNewDocument(before);
    if (counted) {
      const session = await page.createCDPSession();
      await session.send('Profiler.enable');
      await session.send('Profiler.startPreciseCoverage', { callCount: true, detailed: true });
      page.executions = async () => {
        const { result } = await session.send('Profiler.takePreciseCoverage');
        const counts = result
          .filter((script) => script.url.split('#')[0] === url)
          .flatMap((script) => script.functions.flatMap((f) => f.ranges.map((r) => r.count)));
        assert.ok(counts.length > 0, 'no script of the page was counted');
        return counts.reduce((most, count) => Math.max(most, count), 0);
      };
    }
    await page.goto(url + hash);
    await page.waitForSelector(template === 'report' ? '#overview, #case' : '.empty, table, h2');
    page.wrong = wrong;
    page.finish = async () => {
      await page.close();
      assert.deepEqual(wrong, []);
    };
    return page;
  }
}

export const texts = (page, selector) =>
  page.$$eval(selector, (all) => all.map((e) => e.textContent.trim()));
export const text = (page, selector) => page.$eval(selector, (e) => e.textContent.trim());
// This waits by the clock, because a page without frames could not ask at them.
export const until = (page, what, ...args) =>
  page.waitForFunction(what, { timeout: 60000, polling: 50 }, ...args);
// Waits for what the page says beside a button. It is gone again after some seconds, so this has to
// begin before the click.
export const said = (page, what) =>
  until(
    page,
    (what) => [...document.querySelectorAll('.said')].some((s) => s.textContent === what),
    what,
  );
export const shown = (page, selector) =>
  page.$$eval(selector, (all) => all.filter((e) => e.checkVisibility()).length);

// Waits until the page has painted. The wait has an end for a page that gets no frames because it
// is hidden or starved.
export const painted = (page) =>
  page.evaluate(() =>
    Promise.race([
      new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true)))),
      new Promise((done) => setTimeout(() => done(false), 2000)),
    ]),
  );

// Pictures are drawn when they come near the window. So this scrolls past all of them, and again if
// frames were missing.
export async function drawAll(page) {
  const drawn = () =>
    [...document.querySelectorAll('.chart')].every(
      (c) => !c.checkVisibility() || c.querySelector('svg'),
    );
  // One call for the whole way: on a busy machine each call waits for three processes.
  const pass = async () => {
    const framed = () =>
      Promise.race([
        new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(0)))),
        new Promise((done) => setTimeout(() => done(1), 2000)),
      ]);
    let missing = 0;
    for (let y = 0; y < document.documentElement.scrollHeight; y += 600) {
      scrollTo(0, y);
      missing += await framed();
    }
    scrollTo(0, 0);
    await framed();
    return missing;
  };
  for (const end = Date.now() + 120000; ; ) {
    await page.bringToFront();
    const missing = await page.evaluate(pass);
    if (missing === 0 || (await page.evaluate(drawn))) return until(page, drawn);
    // A window of another size is drawn anew, and so is one whose frames have come to an end.
    const { height, ...other } = page.viewport();
    await page.setViewport({ ...other, height: height === 900 ? 901 : 900 });
    assert.ok(
      Date.now() < end,
      `pictures are not drawn: ${missing} stops had no frame, and the page is ${await page.evaluate(() => document.visibilityState)}`,
    );
  }
}

export async function checkLayout(page) {
  const over = await page.evaluate(
    () => document.documentElement.scrollWidth - document.documentElement.clientWidth,
  );
  assert.ok(over <= 0, `the page is ${over} pixels wider than the window`);
  const out = await page.evaluate(() =>
    [...document.querySelectorAll('main *')]
      .filter(
        (e) =>
          e.checkVisibility() &&
          !e.closest('.scroll, svg, .chart') &&
          e.getBoundingClientRect().right > innerWidth + 1,
      )
      .map((e) => e.outerHTML.slice(0, 80)),
  );
  assert.deepEqual(out, []);
}

// The contrast of text against its background is at least 4.5 (WCAG AA).
export async function checkContrast(page) {
  const low = await page.evaluate(() => {
    const numbers = (c) => c.match(/[\d.]+/g).map(Number);
    const light = (c) => {
      const [r, g, b] = numbers(c)
        .map((v) => v / 255)
        .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (e) => {
      for (; e; e = e.parentElement) {
        const c = getComputedStyle(e).backgroundColor;
        if ((numbers(c)[3] ?? 1) > 0.99) return c;
      }
      return 'rgb(255, 255, 255)';
    };
    const found = new Set();
    for (const e of document.querySelectorAll('body *')) {
      if (
        !e.checkVisibility() ||
        e.closest('svg') ||
        ![...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())
      )
        continue;
      const a = light(getComputedStyle(e).color),
        b = light(behind(e)),
        ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      if (ratio < 4.5) found.add(`${e.tagName}.${e.className} ${ratio.toFixed(2)}`);
    }
    for (const t of document.querySelectorAll('svg text')) {
      const a = light(getComputedStyle(t).fill),
        b = light(behind(t.closest('.chart'))),
        ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      if (ratio < 4.5) found.add(`svg text ${t.textContent} ${ratio.toFixed(2)}`);
    }
    return [...found];
  });
  assert.deepEqual(low, []);
}

// Every picture has a table of its numbers, and a description.
export async function checkTables(page) {
  const figures = await page.$$('figure');
  const state = (f) =>
    f.evaluate((e) => ({
      shown: e.checkVisibility(),
      title: e.querySelector('.title').textContent,
      role: e.querySelector('.chart').getAttribute('role'),
      label: e.querySelector('.chart').getAttribute('aria-label'),
      rows: e.querySelectorAll('table tbody tr').length,
      picture: e.querySelector('.picture').checkVisibility(),
      table: e.querySelector('.scroll').checkVisibility(),
      pressed: e.querySelector('.toggle').getAttribute('aria-pressed'),
    }));
  for (const f of figures) {
    const before = await state(f),
      title = before.title;
    if (!before.shown) continue;
    assert.equal(before.role, 'img', title);
    assert.match(before.label, /button Table shows the numbers/, title);
    const toggle = await f.$('.toggle');
    await toggle.click();
    const open = await state(f);
    assert.ok(open.rows > 0, `${title}: its table is empty`);
    assert.equal(open.picture, false, title);
    assert.equal(open.pressed, 'true', title);
    await toggle.click();
    const closed = await state(f);
    assert.equal(closed.picture, true, title);
    assert.equal(closed.table, false, title);
  }
  return figures.length;
}

export async function screenshot(page, name) {
  const folder = process.env.ASSAY_SCREENSHOTS;
  if (!folder) return;
  mkdirSync(folder, { recursive: true });
  await page.screenshot({ path: join(folder, `${name}.png`), fullPage: true });
}

export const clipboard = (page) => page.evaluate(() => navigator.clipboard.readText());

// The texts of the data stayed texts: no script in them ran, and none became an element.
export async function checkHarmless(page) {
  assert.equal(await page.evaluate(() => window.hacked), undefined);
  assert.equal(
    await page.$$eval('img, iframe, object, main script, main b', (all) => all.length),
    0,
  );
  const handlers = await page.evaluate(() =>
    [...document.querySelectorAll('*')].flatMap((e) =>
      [...e.attributes].filter((a) => a.name.startsWith('on')).map((a) => a.name),
    ),
  );
  assert.deepEqual(handlers, []);
}
