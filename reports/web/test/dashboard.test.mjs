import assert from 'node:assert/strict';
import { after, before } from 'node:test';
import { deflateSync } from 'node:zlib';
import {
  Bench,
  checkContrast,
  checkHarmless,
  checkLayout,
  checkTables,
  clipboard,
  drawAll,
  fixture,
  said,
  screenshot,
  text,
  texts,
  until,
} from './browser.mjs';

const bench = new Bench();
before(() => bench.start());
after(() => bench.stop());
const test = (name, body) => bench.test(name, body);

const store = fixture('runs');
const run = (id) => store.runs.find((r) => r.id === id);
const failed = store.runs.find(
  (r) => r.kind === 'check' && r.results.some((x) => x.outcome === 'fail'),
);
const lost = failed.results.find((r) => r.outcome === 'fail');
const open = (data, options) => bench.open('dashboard', data, options);
const titles = (page) => texts(page, 'figure .title');
const rows = (page) => texts(page, 'main > div .sortable tbody tr td:first-child');
const hash = (page) => page.evaluate(() => location.hash);
const figureOf = (page, title) =>
  page.evaluateHandle(
    (t) =>
      [...document.querySelectorAll('figure')].find((f) =>
        f.querySelector('.title').textContent.startsWith(t),
      ),
    title,
  );
async function tableOf(page, title) {
  const f = await figureOf(page, title);
  await (await f.$('.toggle')).click();
  const cells = await f.$$eval('tbody tr', (all) =>
    all.map((r) => [...r.children].map((c) => c.textContent)),
  );
  await (await f.$('.toggle')).click();
  return cells;
}

test('the overview: accuracy, speed, faults, fuzzing, and every run', async () => {
  const page = await open(store);
  assert.deepEqual(await titles(page), [
    'Accuracy',
    'Speed: benchmark: seconds',
    'Planted faults killed',
    'Fuzzing',
  ]);
  assert.deepEqual(await rows(page), store.runs.map((r) => `${r.id}`).reverse());
  assert.match(await text(page, 'header'), /28 runs, as of 2026-01-12/);
  // The worst and the median of a run, computed by hand.
  const accuracy = await tableOf(page, 'Accuracy'),
    first = run(1)
      .results.filter((r) => r.dtype === 'f32')
      .map((r) => r.worst_ratio)
      .sort((a, b) => a - b);
  const of = (what) =>
    Number(accuracy.find((r) => r[2] === '1' && r[3] === `host · f32 · AMD EPYC, ${what}`)[4]);
  assert.ok(Math.abs(of('worst') - first.at(-1)) < 1e-3);
  assert.ok(Math.abs(of('median') - (first[0] + first[1]) / 2) < 1e-3);
  // Only the failing run is beyond the bound.
  assert.deepEqual(
    [...new Set(accuracy.filter((r) => Number(r[4]) > 1).map((r) => r[2]))],
    [`${failed.id}`],
  );
  const faults = await tableOf(page, 'Planted faults'),
    hunted = store.runs.find((r) => r.kind === 'faults');
  assert.equal(
    faults[0][4],
    `${(100 * hunted.results.filter((r) => r.outcome === 'killed').length) / hunted.results.filter((r) => r.outcome !== 'equivalent').length} %`,
  );
  const fuzz = await tableOf(page, 'Fuzzing');
  assert.equal(fuzz.filter((r) => r.at(-1) === 'finding').length, 1);
  await page.finish();
});

for (const scheme of ['light', 'dark'])
  for (const width of [1280, 360])
    test(`${scheme}, ${width} pixels: fits, can be read, every picture has its table`, async () => {
      for (const [name, at] of [
        ['runs', ''],
        ['runs', `#run=${failed.id}`],
        ['runs', `#run=${failed.id}&case=${encodeURIComponent(lost.name)}`],
        ['runs-one', ''],
        ['runs-none', ''],
      ]) {
        const page = await open(fixture(name), { scheme, width, hash: at });
        await drawAll(page);
        await screenshot(
          page,
          `dashboard-${name}${at.includes('case') ? '-case' : at ? '-run' : ''}-${scheme}-${width}`,
        );
        await checkLayout(page);
        await checkContrast(page);
        assert.equal(await page.evaluate(() => document.getAnimations().length), 0);
        const figures = await checkTables(page);
        if (name === 'runs') assert.equal(figures, at === '' ? 4 : at.includes('case') ? 2 : 0);
        await page.finish();
      }
    });

test('selectors narrow pictures and runs; back and forward follow', async () => {
  const page = await open(store);
  await page.select('[name=candidate]', 'peer:torch');
  const torch = store.runs
    .filter((r) => r.candidate === 'peer:torch')
    .map((r) => `${r.id}`)
    .reverse();
  assert.deepEqual(await rows(page), torch);
  assert.deepEqual(await titles(page), ['Accuracy', 'Speed: check: candidate seconds']);
  assert.equal(await page.evaluate(() => document.activeElement.name ?? ''), '');
  await page.select('[name=dtype]', 'f16');
  assert.ok((await tableOf(page, 'Accuracy')).every((r) => r[3].startsWith('peer:torch · f16')));
  await page.goBack();
  await until(page, () => document.querySelector('[name=dtype]').value === '');
  assert.ok((await tableOf(page, 'Accuracy')).some((r) => r[3].startsWith('peer:torch · f32')));
  await page.goBack();
  await until(
    page,
    (n) => document.querySelectorAll('.sortable tbody tr').length === n,
    store.runs.length,
  );
  await page.goForward();
  await until(
    page,
    (n) => document.querySelectorAll('.sortable tbody tr').length === n,
    torch.length,
  );
  await page.select('[name=candidate]', '');
  await page.select('[name=machine]', 'Neoverse V2, 8 threads, 14.2.0, Release');
  assert.deepEqual(await rows(page), ['28']);
  await page.select('[name=kind]', 'fuzz');
  assert.match(await text(page, 'main'), /Nothing fits the filters\..*No run fits the filters\./s);
  await page.finish();
});

test('a filter by name keeps the focus while it draws', async () => {
  const page = await open(store);
  await page.type('[name=filter]', 'backward', { delay: 30 });
  const expected = store.runs
    .filter((r) => r.results.some((x) => x.name.includes('backward')))
    .map((r) => `${r.id}`)
    .reverse();
  await until(
    page,
    (n) => document.querySelectorAll('.sortable tbody tr').length === n,
    expected.length,
  );
  assert.deepEqual(await rows(page), expected);
  assert.equal(await page.$eval('[name=filter]', (e) => e.value), 'backward');
  assert.equal(await page.evaluate(() => document.activeElement.name), 'filter');
  await page.keyboard.type('x');
  await until(page, () => document.querySelector('.sortable') === null);
  assert.equal(await page.$eval('[name=filter]', (e) => e.value), 'backwardx');
  await page.finish();
});

test('speed by other measures, and along commits', async () => {
  const page = await open(store);
  await page.select('[name=measure]', 'benchmark: fraction_of_peak');
  const benchmark = store.runs.find((r) => r.kind === 'benchmark');
  const table = await tableOf(page, 'Speed: benchmark: fraction_of_peak');
  assert.equal(
    Number(table.find((r) => r[2] === `${benchmark.id}`)[4]),
    benchmark.results[0].counters.fraction_of_peak,
  );
  // Many cases are shown relative to their own first time, so the first run is 1.
  await page.select('[name=measure]', 'check: candidate seconds');
  const relative = await tableOf(page, 'Speed: check');
  assert.ok(relative.filter((r) => r[2] === '1').every((r) => Number(r[4]) === 1));
  await page.select('[name=along]', 'commits');
  const commits = new Set(store.runs.filter((r) => r.kind === 'check').map((r) => r.commit));
  assert.equal(new Set((await tableOf(page, 'Accuracy')).map((r) => r[1])).size, commits.size);
  await page.finish();
});

test('a point opens its run, a run its cases, a case its history; back leads back', async () => {
  const page = await open(store);
  await drawAll(page);
  const f = await figureOf(page, 'Planted faults');
  await f.evaluate((e) => e.scrollIntoView({ block: 'center' }));
  const box = await (await f.$('.chart')).boundingBox();
  // This is the last of three places.
  await page.mouse.click(box.x + 66 + (box.width - 82) * 0.83, box.y + 120);
  const last = store.runs.filter((r) => r.kind === 'faults').at(-1);
  await until(
    page,
    (id) => location.hash === `#run=${id}` && document.querySelector('main h2[tabindex]'),
    last.id,
  );
  assert.match(await text(page, 'main h2'), new RegExp(`^Run ${last.id}: faults`));
  assert.equal((await page.$$('.sortable tbody tr')).length, last.results.length);
  await page.goBack();
  await until(page, () => document.querySelector('figure'));
  await until(page, () => scrollY > 200); // the overview is where it was
  await page.click('[aria-label="Run 16"]');
  await until(page, () => location.hash === '#run=16' && document.querySelector('.caseline a'));
  await page.focus('.caseline a');
  await page.keyboard.press('Enter');
  await until(
    page,
    () => /run=16&case=/.test(location.hash) && document.querySelector('.line code'),
  );
  const name = run(16).results[0].name;
  assert.equal((await texts(page, '.line code'))[0], name);
  assert.equal(
    (await page.$$('.scroll:not([hidden]) > table tbody tr')).length,
    store.runs.filter((r) => r.results.some((x) => x.name === name)).length,
  );
  await page.goBack();
  await until(page, () => location.hash === '#run=16' && document.querySelector('.sortable'));
  await page.click('.back');
  await until(page, () => document.querySelectorAll('figure').length === 4);
  await page.finish();
});

test('a link to a case shows its history, its reason and its command', async () => {
  for (const at of [
    `#run=${failed.id}&case=${encodeURIComponent(lost.name)}`,
    `#run=${failed.id}&case=${encodeURIComponent(lost.name).replaceAll('%20', ' ')}`,
  ]) {
    const page = await open(store, { hash: at });
    await page.bringToFront();
    assert.ok((await text(page, 'main')).includes(lost.reason));
    assert.deepEqual(await titles(page), ['Error / bound', 'Time']);
    const table = await tableOf(page, 'Error / bound');
    assert.equal(table.find((r) => r[2] === `${failed.id}`)[4], '476');
    assert.ok(table.length >= 16);
    await Promise.all([
      said(page, 'copied'),
      page.click('[aria-label="Copy command that reproduces it"]'),
    ]);
    assert.equal(await clipboard(page), lost.reproduce);
    await page.finish();
  }
});

test('how many elements were compared, and nothing where nobody counted', async () => {
  const data = structuredClone(store);
  data.runs.find((r) => r.id === failed.id).results[1].compared = 12345;
  const page = await open(data, { hash: `#run=${failed.id}` });
  const column = (await texts(page, '.sortable th')).findIndex((t) => t.startsWith('compared')) + 1;
  assert.deepEqual(
    await texts(page, `.sortable tbody td:nth-child(${column})`),
    failed.results.map((_, k) => (k === 1 ? '12,345' : '')),
  );
  await page.finish();
});

test('results of a run sort and filter', async () => {
  const page = await open(store, { hash: `#run=${failed.id}` });
  await page.click('[data-sort=worst]');
  assert.equal((await texts(page, '.sortable tbody td.caseline code'))[0], lost.name);
  assert.ok((await text(page, '.sortable tbody tr')).includes(lost.reason));
  await page.select('[name=outcome]', 'pass');
  assert.equal((await page.$$('.sortable tbody tr')).length, 3);
  await page.goBack();
  await until(page, () => document.querySelectorAll('.sortable tbody tr').length === 4);
  await page.type('[name=filter]', 'grad=cancel');
  await until(page, () => document.querySelectorAll('.sortable tbody tr').length === 1);
  await page.finish();
  const sorted = await open(store);
  await sorted.click('[data-sort=worst]');
  assert.equal((await rows(sorted))[0], `${failed.id}`);
  await sorted.finish();
});

test('no run, one run, and addresses that lead nowhere say so', async () => {
  const none = await open(fixture('runs-none'));
  assert.match(await text(none, 'main'), /The store has no run yet\..*There is no run to list\./s);
  await none.finish();
  const one = await open(fixture('runs-one'));
  await drawAll(one);
  assert.deepEqual(await titles(one), ['Accuracy', 'Speed: check: candidate seconds']);
  assert.deepEqual(await rows(one), ['1']);
  await one.finish();
  const wrong = await open(store, { hash: '#run=999' });
  assert.match(await text(wrong, 'main'), /There is no run 999/);
  await wrong.finish();
  const nowhere = await open(store, {
    hash: '#run=1&case=%3Cimg%20src%3Dx%20onerror%3Dhacked%3D1%3E',
  });
  assert.match(await text(nowhere, 'main'), /No run of the store has this case/);
  await checkHarmless(nowhere);
  await nowhere.finish();
});

test('texts of the data stay text', async () => {
  const data = fixture('runs-hostile'),
    evil = data.runs[0].title;
  for (const width of [1280, 360])
    for (const at of [
      '',
      '#run=1',
      '#run=2',
      '#run=4',
      `#run=1&case=${encodeURIComponent(evil)}`,
      `#run=1&case=${encodeURIComponent(data.runs[0].results[1].name)}`,
    ]) {
      const page = await open(data, { width, hash: at });
      await drawAll(page);
      for (const f of await page.$$('figure .chart')) {
        await f.hover();
        await new Promise((done) => setTimeout(done, 60));
      }
      for (const button of await page.$$('.toggle')) await button.click();
      await screenshot(page, `dashboard-hostile${at.slice(0, 12).replace(/\W/g, '-')}-${width}`);
      await checkHarmless(page);
      await checkLayout(page);
      if (at.length < 200)
        assert.ok((await page.$eval('body', (e) => e.textContent)).includes(evil), at);
      await page.finish();
    }
});

test('by keyboard alone: every control is reached and the focus is seen', async () => {
  const page = await open(store);
  const seen = new Set();
  for (let i = 0; i < 40; i++) {
    await page.keyboard.press('Tab');
    const at = await page.evaluate(() => {
      const e = document.activeElement,
        style = getComputedStyle(e);
      return {
        what: e.name || e.dataset?.sort || e.className || e.getAttribute('aria-label') || e.tagName,
        outline: style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2,
      };
    });
    assert.ok(at.outline, `${at.what} shows no focus`);
    seen.add(at.what);
  }
  for (const what of [
    'scheme',
    'candidate',
    'dtype',
    'machine',
    'kind',
    'along',
    'filter',
    'toggle',
    'measure',
    'worst',
    'Run 28',
  ])
    assert.ok(seen.has(what), `${what} is not reached`);
  await page.finish();
});

test('500 runs of 400 results are each looked at a few times, and the page answers', async (t) => {
  const results = Array.from({ length: 400 }, (_, k) => ({
    name: `attention b=2 h=6/2 l=${k + 1}x${k + 53} d=40/72 dtype=${['f32', 'f16', 'bf16'][k % 3]} causal window=16,0 bias=normal scores=negative seed=${k} layout=q:padded,k:strided`,
    dtype: ['f32', 'f16', 'bf16'][k % 3],
    outcome: 'pass',
    reason: 'every element is inside its bound',
    reproduce: `assay check --candidate host --case 'attention b=2 h=6/2 l=${k + 1}x${k + 53} d=40/72 causal'`,
    worst_output: 'O',
    worst_ratio: (k % 97) / 100,
    seconds: 0.001 * (1 + (k % 7)),
  }));
  const data = {
    generated: '',
    runs: Array.from({ length: 500 }, (_, i) => ({
      ...run(1),
      id: i + 1,
      candidate: i % 2 ? 'host' : 'peer:torch',
      commit: `${i}`,
      started: new Date(Date.UTC(2025, 0, 1 + i)).toISOString(),
      results,
    })),
  };
  const page = await open(data, { counted: true });
  await page.waitForSelector('.sortable');
  const drawn = await page.executions();
  await page.evaluate(() => {
    const s = document.querySelector('[name=dtype]');
    s.value = 'bf16';
    s.dispatchEvent(new Event('change'));
  });
  const filtered = await page.executions();
  t.diagnostic(`${drawn} executions until it is drawn, ${filtered} of a filter`);
  assert.ok(drawn < 20 * 500 * 400, `a statement ran ${drawn} times until the page was drawn`);
  assert.ok(
    filtered > 0 && filtered < 10 * 500 * 400,
    `a statement of a filter ran ${filtered} times`,
  );
  await page.evaluate((name) => {
    location.hash = `run=12&case=${encodeURIComponent(name)}`;
  }, results[7].name);
  await until(
    page,
    () => document.querySelectorAll('.scroll:not([hidden]) > table tbody tr').length === 500,
  );
  await drawAll(page);
  await page.finish();
});

// As large a store as the program is measured with (docs/alarms.md).
test('1,000 runs of 1,000 results by columns are each looked at a few times', async (t) => {
  const numbers = (scale) =>
      Array.from({ length: 1000 }, (_, k) => Number((scale * (1 + (k % 97) / 100)).toPrecision(4))),
    dtypes = ['f32', 'f16', 'bf16'],
    kinds = Array.from({ length: 1000 }, (_, k) => [
      `attention b=2 h=6/2 l=${k + 1}x${k + 53} d=40/72 dtype=${dtypes[k % 3]} causal seed=${k}`,
      dtypes[k % 3],
      'pass',
      'every element is inside its bound',
      `assay check --candidate host --case 'attention l=${k + 1}x${k + 53}'`,
      'O',
      1000 + k,
    ]),
    part = (first, end) => {
      const columns = [kinds.map((_, k) => k)];
      const runs = Array.from({ length: end - first }, (_, k) => first + k).map((i) => ({
        ...run(1),
        results: undefined,
        id: i + 1,
        commit: `${i}`,
        started: new Date(Date.UTC(2024, 0, 1 + i)).toISOString(),
        kinds: 0,
        worst_ratio: columns.push(numbers(0.1 + i / 2000)) - 1,
        seconds: columns.push(numbers(0.001 + i / 2e6)) - 1,
      }));
      return { kinds, columns, runs };
    };
  const page = await openParts(part(960, 1000), part(0, 960), { counted: true });
  await whole(page);
  await page.waitForSelector('.sortable');
  const drawn = await page.executions();
  t.diagnostic(`${drawn} executions until it is drawn`);
  assert.ok(drawn < 20 * 1000 * 1000, `a statement ran ${drawn} times until the page was drawn`);
  assert.match(await text(page, '[role=status]'), /1,000 of 1,000 runs/);
  await drawAll(page);
  await page.finish();
});

test('a run that did not pass as a whole is not shown as good', async () => {
  const data = fixture('runs-one');
  for (const [outcome, kind, words] of [
    ['pass', 'good', '4 of 4 passed'],
    ['inconclusive', 'open', '3 of 4 passed'],
    ['fail', 'bad', '1 of 4 failed'],
  ]) {
    data.runs[0].results[1].outcome = outcome;
    const page = await open(data, { hash: '#run=1' });
    assert.equal(await text(page, `.verdict.${kind} .words`), words);
    await page.finish();
  }
});

// The data as the program writes them: texts and columns that repeat are listed once.
function byColumns({ runs, ...rest }) {
  const kinds = [],
    columns = [],
    once = (list, value) => {
      const text = JSON.stringify(value),
        known = list.findIndex((x) => JSON.stringify(x) === text);
      return known < 0 ? list.push(value) - 1 : known;
    };
  const texts = ['name', 'dtype', 'outcome', 'reason', 'reproduce', 'worst_output', 'compared'],
    numbers = ['worst_ratio', 'evidence', 'bias', 'slope', 'seconds', 'judge_seconds'];
  const short = runs.map(({ results, ...run }) => {
    run.kinds = once(
      columns,
      results.map((r) =>
        once(
          kinds,
          texts.map((t) => r[t] ?? null),
        ),
      ),
    );
    for (const n of numbers)
      if (results.some((r) => r[n] !== undefined))
        run[n] = once(
          columns,
          results.map((r) => r[n] ?? null),
        );
    if (results.some((r) => r.counters)) run.counters = results.map((r) => r.counters ?? null);
    return run;
  });
  return { ...rest, kinds, columns, runs: short };
}

// A page as the program writes it: the last runs, and behind them the earlier ones, packed.
function openParts(last, first, { change = (text) => text, ...options } = {}) {
  const packed = change(deflateSync(JSON.stringify(first)).toString('base64'));
  return open(
    { ...last, earlier: first.runs.length },
    { ...options, behind: `<script type="text/plain" id="earlier">${packed}</script>` },
  );
}
const openPacked = ({ runs, ...rest }, first, options) =>
  openParts(
    byColumns({ ...rest, runs: runs.slice(first) }),
    byColumns({ runs: runs.slice(0, first) }),
    options,
  );
const whole = (page) =>
  until(page, () => !/being read/.test(document.querySelector('.when').textContent));

test('the last runs are shown while the earlier ones are read, and what is typed stays', async () => {
  // The page reads the earlier runs when this says so.
  const before = () => {
    const released = new Promise((done) => (window.release = done)),
      { json } = Response.prototype;
    Response.prototype.json = async function () {
      await released;
      return json.call(this);
    };
  };
  const first = store.runs.length - 1,
    of_run = `#run=${failed.id}`;
  assert.ok(store.runs.indexOf(failed) < first);
  for (const hash of [of_run, `${of_run}&case=${encodeURIComponent(lost.name)}`]) {
    const page = await openPacked(store, first, { before, hash });
    assert.equal(await text(page, 'h2'), `Reading run ${failed.id}`);
    await page.evaluate(() => window.release());
    await whole(page);
    assert.notEqual(await text(page, 'h2'), `Reading run ${failed.id}`);
    await page.finish();
  }
  const page = await openPacked(store, first, { before });
  const reading = first === 1 ? '1 earlier run is' : `${first} earlier runs are`;
  assert.equal(await text(page, 'main [role=status]'), `1 of 1 run; ${reading} being read`);
  await page.focus('input[name=filter]');
  // The letters are typed and the runs arrive at once, before the page would be drawn for them.
  await page.evaluate(() => {
    const field = document.querySelector('input[name=filter]');
    field.value = 'l=';
    field.dispatchEvent(new Event('input', { bubbles: true }));
    window.release();
  });
  await whole(page);
  await until(page, () => /filter=/.test(location.hash));
  assert.equal(await page.$eval('input[name=filter]', (e) => e.value), 'l=');
  assert.equal(await page.evaluate(() => document.activeElement.name), 'filter');
  await page.finish();
});

test('earlier runs that were cut off are told, and the others are shown', async () => {
  const of = (n) => `${n} of ${n} runs; 2 earlier runs cannot be read: `;
  for (const change of [
    (text) => text.slice(0, -8),
    (text) => text.slice(0, 400),
    () => '',
    () => '#',
  ]) {
    const page = await openPacked(store, 2, { change });
    await whole(page);
    assert.ok((await text(page, 'main [role=status]')).startsWith(of(store.runs.length - 2)));
    assert.match(await text(page, '.when'), /; 2 earlier runs cannot be read: ./);
    await page.finish();
  }
  const page = await openPacked(store, 2, { change: () => '', hash: `#run=${store.runs[0].id}` });
  await whole(page);
  assert.equal(
    await text(page, 'h2'),
    `Run ${store.runs[0].id} is none of those that could be read`,
  );
  await page.finish();
  const of_case = await openPacked(store, store.runs.length - 1, {
    change: () => '',
    hash: `#run=${failed.id}&case=${encodeURIComponent(lost.name)}`,
  });
  await whole(of_case);
  assert.equal(await text(of_case, 'h2'), `Run ${failed.id} is none of those that could be read`);
  await of_case.finish();
  const without = await open({ runs: [], earlier: 3 });
  await whole(without);
  assert.match(
    await text(without, '.when'),
    /; 3 earlier runs cannot be read: the page ends before them$/,
  );
  await without.finish();
});

test('results by columns, packed or not, show what the same results as objects show', async () => {
  for (const at of [
    '',
    `#run=${failed.id}`,
    `#run=${failed.id}&case=${encodeURIComponent(lost.name)}`,
    `#run=${store.runs.find((r) => r.kind === 'fuzz').id}`,
    `#run=${store.runs.find((r) => r.kind === 'benchmark').id}`,
  ]) {
    const shown = [];
    for (const opened of [
      () => open(store, { hash: at }),
      () => open(byColumns(store), { hash: at }),
      () => openPacked(store, store.runs.length - 1, { hash: at }),
      () => openPacked(store, 1, { hash: at }),
    ]) {
      const page = await opened();
      await whole(page);
      for (const button of await page.$$('.toggle')) await button.click();
      shown.push(await text(page, 'main'));
      await page.finish();
    }
    for (const other of shown.slice(1)) assert.equal(other, shown[0]);
    if (at.includes('case'))
      for (const part of [lost.reason, lost.reproduce]) assert.ok(shown[1].includes(part));
  }
});

// A change point of a case for the worse, and one of the suite for the better.
const changeOf = (more) => ({
  measure: 'accuracy',
  suite: 'standard',
  candidate: 'host',
  machine: 'AMD EPYC',
  before: 0.2,
  after: 0.4,
  ratio: 2,
  last_before: { run: 1, started: run(1).started, commit: run(1).commit },
  first_after: { run: failed.id, started: failed.started, commit: failed.commit },
  found: { run: failed.id, started: failed.started, commit: failed.commit },
  certain: true,
  link: '',
  ...more,
});
const changed = {
  ...store,
  alarms: {
    alarms: [changeOf({ name: lost.name })],
    better: [changeOf({ measure: 'time', ratio: 0.5, before: 1, after: 0.5, certain: false })],
  },
};

test('change points are marked, listed, and lead to their runs and cases', async () => {
  const page = await open(changed);
  await drawAll(page);
  const marks = (title) =>
    figureOf(page, title).then((f) =>
      f.$$eval('svg text', (all) => all.map((t) => t.textContent).filter((t) => /[▲▼]/.test(t))),
    );
  assert.deepEqual(await marks('Accuracy'), ['▲1']);
  const headings = await texts(page, 'h2');
  assert.deepEqual(headings, ['Change points', 'Runs']);
  const cells = await page.$$eval('[aria-label="Change points"] tbody tr', (all) =>
    all.map((r) => [...r.children].map((c) => c.textContent)),
  );
  assert.equal(cells.length, 2);
  const worse = cells.find((c) => c[1] === 'error / bound'),
    better = cells.find((c) => c[1] === 'time');
  assert.equal(worse[0], '▲ × 2');
  assert.equal(worse[2], '0.2 → 0.4');
  assert.ok(worse[3].includes('1') && worse[3].includes(run(1).commit.slice(0, 12)));
  assert.ok(worse[4].includes(failed.commit.slice(0, 12)));
  assert.equal(worse[5], 'at once');
  assert.equal(better[0], '▼ × 0.5');
  assert.equal(better.at(-1), 'all of standard');
  assert.match(await text(page, 'main'), /1 change for the worse, 1 for the better/);
  // Its own order does not disturb that of the runs.
  await page.click('[data-sort=change]');
  await until(page, () => /changes=-change/.test(location.hash));
  assert.deepEqual((await rows(page)).slice(-1), ['1']);
  await screenshot(page, 'dashboard-changes');
  // Both runs and the case are links.
  await page.click('[aria-label="Change points"] td:nth-child(4) a');
  await until(page, () => /^#.*run=1$/.test(location.hash));
  await page.goBack();
  await until(page, () => document.querySelector('[aria-label="Change points"] .caseline a'));
  await page.click('[aria-label="Change points"] .caseline a');
  await until(page, () => /case=/.test(location.hash) && document.querySelector('.line code'));
  assert.equal((await texts(page, '.line code'))[0], lost.name);
  await drawAll(page);
  assert.deepEqual(await marks('Error / bound'), ['▲1']);
  assert.equal((await page.$$('[aria-label="Change points"] tbody tr')).length, 1);
  await page.finish();
});

test('filters keep the change points of what they keep', async () => {
  const page = await open(changed, { hash: `#filter=${encodeURIComponent(lost.name)}` });
  assert.equal((await page.$$('[aria-label="Change points"] tbody tr')).length, 1);
  await page.finish();
  const other = await open(changed, { hash: '#candidate=peer:torch' });
  assert.equal((await other.$$('[aria-label="Change points"]')).length, 0);
  await other.finish();
});

test('change points fit, can be read, and their texts stay texts', async () => {
  const evil = fixture('runs-hostile').runs[0].title;
  const data = structuredClone(changed);
  for (const a of [...data.alarms.alarms, ...data.alarms.better])
    Object.assign(a, { suite: evil, candidate: evil });
  data.alarms.alarms[0].last_before.commit = evil;
  for (const [scheme, width] of [
    ['light', 1280],
    ['dark', 360],
  ]) {
    const page = await open(data, { scheme, width });
    await drawAll(page);
    await screenshot(page, `dashboard-changes-${scheme}-${width}`);
    await checkLayout(page);
    await checkContrast(page);
    await checkHarmless(page);
    await page.finish();
  }
});

// Runs of one day and one minute, with many dtypes.
const manySeries = {
  generated: '2026-01-12T00:00:00Z',
  runs: [1, 2].map((id) => ({
    ...structuredClone(failed),
    id,
    results: Array.from({ length: 11 }, (_, k) => ({
      name: `case ${k}`,
      outcome: 'pass',
      dtype: `dtype${k}`,
      worst_ratio: 0.01 * 1.5 ** k,
      seconds: 1,
    })),
  })),
};

test('runs of one day have labels that differ', async () => {
  const page = await open(manySeries);
  await drawAll(page);
  const labels = await page.evaluate(() =>
    [...document.querySelector('figure .chart').querySelectorAll('svg text')].map(
      (t) => t.textContent,
    ),
  );
  assert.ok(labels.includes('#1') && labels.includes('#2'), labels.join(' | '));
  await page.finish();
});

test('no two lines of a picture look alike', async () => {
  const page = await open(manySeries);
  await drawAll(page);
  // A mark is a path without a line through it; its place is a transformation.
  const looks = await page.evaluate(() =>
    [
      ...document
        .querySelector('figure .chart')
        .querySelectorAll('svg path[transform^="matrix(3.5"]'),
    ].map((p) => `${p.getAttribute('d')} ${p.getAttribute('fill')} ${p.getAttribute('stroke')}`),
  );
  assert.ok(new Set(looks).size >= 11, `${new Set(looks).size} of ${looks.length}`);
  await page.finish();
});

test('the table of runs is not cut off', async () => {
  const page = await open(store);
  const over = await page.$eval('.scroll:has(> .sortable)', (e) => e.scrollWidth - e.clientWidth);
  assert.ok(over <= 0, `${over} pixels are cut off`);
  await page.finish();
});
