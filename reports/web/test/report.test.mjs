import assert from 'node:assert/strict';
import { after, before } from 'node:test';
import {
  Bench,
  checkContrast,
  checkHarmless,
  checkLayout,
  checkTables,
  clipboard,
  drawAll,
  fixture,
  painted,
  said,
  screenshot,
  shown,
  text,
  texts,
  until,
} from './browser.mjs';

const bench = new Bench();
before(() => bench.start());
after(() => bench.stop());
const test = (name, body) => bench.test(name, body);

const run = fixture('report');
const failing = run.results
  .map((r, i) => ({ ...r, number: i + 1 }))
  .filter((r) => r.outcome === 'fail');
const open = (data, options) => bench.open('report', data, options);
const rows = (page) => texts(page, '#case-table tbody tr td:first-child');

test('the page begins with the verdict and says all that a run says', async () => {
  const page = await open(run);
  assert.equal(await text(page, 'h1'), 'Assay: fault:causal-off-by-one on smoke');
  assert.equal(await text(page, '.words'), `${failing.length} cases failed`);
  assert.equal(await text(page, '#sentence'), run.summary.sentence);
  // Failures come first, each with its reason.
  assert.equal(await page.$eval('section h2', (e) => e.id), 'failures');
  assert.deepEqual(
    await texts(page, '.failure > summary strong'),
    failing.map((f) => f.reason),
  );
  const all = await text(page, 'main');
  for (const [name, cells] of Object.entries(run.summary.adequacy))
    assert.ok(all.includes(`${name}`) && all.includes(cells.shown.toLocaleString('en-US')), name);
  for (const value of Object.values(run.machine))
    assert.ok(all.includes(String(value)), String(value));
  for (const r of run.results) assert.ok(all.includes(r.case), r.case);
  assert.match(all, /A pass says as much as the faults it could have shown/);
  assert.match(
    all,
    /shown means that some case of the run would have moved an output by more than twice its bound/,
  );
  assert.match(all, /1 would be the bound itself; a case judged without tolerance alone has none/);
  assert.deepEqual(
    (await texts(page, '#case-table th button')).map((t) => t.replace(/[↕↑↓]/, '')),
    ['case', 'outcome', 'dtype', 'worst', 'O', 'LSE', 'gradients', 'C', 'candidate', 'case line'],
  );
  await page.finish();
});

test('a failure shows its element, its lines and its pictures', async () => {
  const page = await open(run);
  const first = await text(page, '.failure .first');
  for (const part of [
    'b=0, h=0, row=53',
    '0.0175257921',
    '-inf',
    'LSE of a row without weight is not -inf',
  ])
    assert.ok(first.includes(part), part);
  assert.ok((await texts(page, '.failure .line code')).includes(failing[0].shrunk));
  assert.ok((await texts(page, '.failure .line code')).includes(failing[0].reproduce));
  const figures = await texts(page, '.failure[open] figcaption .title');
  assert.deepEqual(figures, [
    'O, b=1, h=2',
    'O, b=0, h=1',
    'LSE, b=0, h=1',
    'LSE, b=1, h=2',
    'O by head',
    'LSE by head',
    'O by tile of query rows',
    'O: errors in ulps',
    'LSE: errors in ulps',
    'Mask, b=0, h=0',
  ]);
  // The next one is filled when it is opened, also by keyboard.
  assert.equal(await shown(page, '.failure:nth-of-type(2) .line'), 0);
  await page.focus('.failure:nth-of-type(2) > summary');
  await page.keyboard.press('Enter');
  await until(page, () => document.querySelectorAll('.failure:nth-of-type(2) .line').length > 0);
  await page.finish();
});

// A row lacks a key, one has a hidden key and half a weight too much, and one is not explained.
const withWeights = () => ({
  ...run,
  results: run.results.map((r, i) =>
    i + 1 === failing[0].number
      ? {
          ...r,
          weights: {
            b: 0,
            h: 1,
            rows: 8,
            keys: 6,
            row_step: 2,
            key_step: 2,
            cells: [
              [0, 0, 0],
              [1, 0, 0],
              [0, -0.4, -1],
              [null, null, null],
            ],
          },
        }
      : r,
  ),
});

test('a failure shows which weights its output lacks', async () => {
  const page = await open(withWeights());
  const figures = await texts(page, '.failure[open] figcaption .title');
  assert.ok(figures.indexOf('Weights, b=0, h=1') > figures.indexOf('LSE, b=1, h=2'));
  assert.ok(figures.indexOf('Weights, b=0, h=1') < figures.indexOf('O by head'));
  await drawAll(page);
  const figure = await page.evaluateHandle(() =>
    [...document.querySelectorAll('.failure[open] figure')].find((f) =>
      f.querySelector('.title').textContent.startsWith('Weights'),
    ),
  );
  const words = await figure.evaluate((f) => f.textContent);
  for (const part of [
    'Which weights of P the output lacks or has twice, estimated from its errors.',
    'A cell is one of 2 rows × 2 keys; it shows the weight that is furthest off.',
    'No few weights explain 1 row.',
    'not explained by weights',
  ])
    assert.ok(words.includes(part), part);
  assert.match(
    await figure.$eval('.chart', (e) => e.getAttribute('aria-label')),
    /3 of 12 cells have a weight that is off/,
  );
  await (await figure.$('.toggle')).click();
  assert.deepEqual(
    await figure.$$eval('table tbody tr', (all) =>
      all.map((r) => [...r.children].map((c) => c.textContent)),
    ),
    [
      ['2–3', '0–1', 'missing'],
      ['4–5', '2–3', '1.4 times as large, or 0.4 of it there although it is hidden'],
      ['4–5', '4–5', 'twice, or there although it is hidden'],
    ],
  );
  await (await figure.$('.toggle')).click();
  await checkTables(page);
  await checkContrast(page);
  await screenshot(page, 'report-weights');
  await page.finish();
});

// A failure inside its bounds, and what the failing cases of the run share.
const withEvidence = () => ({
  ...run,
  summary: {
    ...run.summary,
    shared: {
      features: ['causal'],
      failing: 5,
      passing: 10,
      others: 0,
      sentence: 'all 5 failing cases have causal; none of 10 passing ones has it',
    },
    causes: [
      {
        outcome: 'fail, proved',
        reason: 'LSE is outside its bound',
        cases: 4,
        features: ['causal', 'at least 70 keys'],
        case: failing[0].case,
        reproduce: failing[0].reproduce,
      },
      {
        outcome: 'fail, by evidence',
        reason: 'the newest key of each row is missing',
        cases: 1,
        case: failing[1].case,
        reproduce: failing[1].reproduce,
      },
    ],
  },
  results: run.results.map((r, i) =>
    i + 1 !== failing[0].number
      ? r
      : {
          ...r,
          reason: 'by evidence: inside every bound',
          by_evidence: true,
          evidence: {
            arithmetic: 'fp32 accumulation, weights in f16',
            fits: false,
            rows: {
              O: { s: 2104.5, median: 1.04, limit: 3.75, b: 0, h: 1, row: 65 },
              dK: { s: 1.25, median: 0.9, limit: 7.5, b: 0, h: 0, row: 3 },
              C: { s: 1.5, median: 1, limit: 4, b: 0, h: 0, row: 7, of_column: true },
            },
            filters: [
              { fault: 'the newest key of each row is missing', share: 0.998, z: 451.25, least: 0 },
              { fault: 'O is too large', share: -0.001, z: -9.5, least: 0.002 },
            ],
            z_limit: 8.125,
            questions: 312,
            rows_asked: 260,
            replicates: 12,
            seed: 9,
          },
        },
  ),
});

for (const width of [1280, 360])
  test(`evidence is shown with its rows and filters, ${width} pixels`, async () => {
    const page = await open(withEvidence(), { width, hash: `#case=${failing[0].number}` });
    assert.match(await text(page, '#case h2'), /fail, by evidence$/);
    assert.equal(await text(page, '#case .reason'), 'inside every bound');
    const shownRows = (label) => texts(page, `#case [aria-label="${label}"] tbody td`);
    assert.deepEqual(await shownRows('Errors in units of typical ones'), [
      ...['O', '2.1e+3', '3.75', '1.04', 'b=0, h=1, row=65'],
      ...['dK', '1.25', '7.5', '0.9', 'b=0, h=0, key=3'],
      ...['C', '1.5', '4', '1', 'column 7'],
    ]);
    assert.deepEqual(await shownRows('Faults in the errors'), [
      ...['the newest key of each row is missing', '0.998', '0', '451', '8.13'],
      ...['O is too large', '-0.001', '0.002', '-9.5', '8.13'],
    ]);
    // What is beyond its limit is marked, and nothing else is.
    assert.deepEqual(await texts(page, '#case .evidence .beyond'), ['2.1e+3', '451']);
    const all = await text(page, '#case .evidence');
    assert.match(all, /No arithmetic makes such errors; they come nearest to those of fp32/);
    assert.match(all, /260 rows and 312 faults were asked, beside 12 replicates \(seed 9\)/);
    await checkLayout(page);
    await checkContrast(page);
    await page.finish();
  });

test('what failing cases share stands above them, and each cause once', async () => {
  const page = await open(withEvidence());
  assert.equal(
    await text(page, '.shared'),
    'all 5 failing cases have causal; none of 10 passing ones has it',
  );
  const cells = await texts(page, '[aria-label="Failures by cause"] tbody td');
  assert.deepEqual(cells.slice(0, 4), [
    '4',
    'fail, proved',
    'LSE is outside its bound',
    'causal, at least 70 keys',
  ]);
  assert.deepEqual(cells.slice(5, 9), [
    '1',
    'fail, by evidence',
    'the newest key of each row is missing',
    '',
  ]);
  assert.equal(cells[9], failing[1].reproduce);
  await checkLayout(page);
  await page.finish();
  const without = await open(run);
  assert.equal(await shown(without, '.shared'), 0);
  await without.finish();
});

test('a convention that differs is listed once, with the option that accepts it', async () => {
  const data = structuredClone(run);
  data.summary.conventions = [
    {
      convention: 'masked-rows:nan',
      what: 'O of a row that sees no key',
      cases: 2,
      rule: 'fail',
      case: 'attention b=1 h=1 l=4 d=2 starts=4',
    },
  ];
  const page = await open(data);
  assert.deepEqual(await texts(page, '[aria-label="Conventions that differ"] tbody td'), [
    '--accept-convention masked-rows:nan',
    'O of a row that sees no key',
    '2',
    'fail',
    'attention b=1 h=1 l=4 d=2 starts=4',
  ]);
  await checkLayout(page);
  await page.finish();
  const without = await open(run);
  assert.equal(await shown(without, '[aria-label="Conventions that differ"]'), 0);
  await without.finish();
});

test('a heat map draws every cell and crosses those beyond the bound', async () => {
  const page = await open(run, { hash: '#case=2' });
  await drawAll(page);
  for (const [i, map] of run.results[1].maps.entries()) {
    const cells = map.cells.flat(),
      bad = cells.filter((c) => c !== null && !(typeof c === 'number' && c <= 1)).length;
    // A cross has two lines, and a cell that is not judged has one.
    const drawn = await page.$$eval(
      'figure.map',
      (all, n) => {
        const paths = [...all[n].querySelectorAll('svg path')].map((p) => p.getAttribute('d'));
        return {
          cells: paths.filter((d) => /[zZ]$/.test(d)).length,
          lines: paths.filter((d) => /^M[-\d. ]+L[-\d. ]+$/.test(d)).length,
        };
      },
      i,
    );
    assert.ok(drawn.cells >= cells.length, `${drawn.cells} of ${cells.length} cells`);
    assert.ok(
      drawn.lines >= 2 * bad + cells.filter((c) => c === null).length,
      `${drawn.lines} lines, ${bad} bad cells`,
    );
    // The colours of the legend occur as often as the numbers say.
    const limits = [
      ['h0', 0.01],
      ['h1', 0.03],
      ['h2', 0.1],
      ['h3', 0.3],
      ['h4', 1],
      ['f0', 10],
      ['f1', 1000],
      ['f2', Infinity],
    ];
    const shade = (r) => (typeof r === 'number' ? limits.find(([, limit]) => r <= limit)[0] : 'fx');
    for (const name of [...limits.map(([n]) => n), 'fx']) {
      const painted = await page.$$eval(
        'figure.map',
        (all, n, swatch) => {
          const fill = getComputedStyle(
            document.querySelector(`.swatch.${swatch}`),
          ).backgroundColor;
          return [...all[n].querySelectorAll('svg path')].filter(
            (p) => getComputedStyle(p).fill === fill,
          ).length;
        },
        i,
        name,
      );
      assert.equal(
        painted,
        cells.filter((r) => r !== null && shade(r) === name).length,
        `cells in ${name}`,
      );
    }
    assert.match(
      await page.$$eval('figure.map .note', (all, n) => all[n].textContent, i),
      new RegExp(`^${bad.toLocaleString('en-US')} cells? of`),
    );
  }
  assert.match(
    await text(page, '.legend'),
    /≤ 0.01.*≤ 1.*outside, with a cross.*inf or nan.*not judged/,
  );
  // The table has the same numbers.
  const figure = (await page.$$('figure.map'))[0],
    map = run.results[1].maps[0];
  await (await figure.$('.toggle')).click();
  assert.equal((await figure.$$('tbody tr')).length, map.cells.length);
  assert.equal((await figure.$$('tbody tr:first-child td')).length, map.cells[0].length + 1);
  assert.equal(
    await figure.$eval('tbody tr:nth-child(21) td:nth-child(2)', (e) => e.textContent),
    String(map.cells[20][0]),
  );
  // A cell says what it is.
  await (await figure.$('.toggle')).click();
  const box = await (await figure.$('.chart')).boundingBox();
  await page.mouse.move(box.x + 120, box.y + 130);
  await until(page, () =>
    /row \d+.*column.*error \/ bound/s.test(document.querySelector('.tip')?.textContent ?? ''),
  );
  await page.finish();
});

for (const scheme of ['light', 'dark'])
  for (const width of [1280, 360])
    test(`${scheme}, ${width} pixels: fits, can be read, every picture has its table`, async () => {
      for (const [name, hash] of [
        ['report', ''],
        ['report', '#case=2'],
        ['pass', ''],
        ['empty', ''],
      ]) {
        const page = await open(fixture(name), { scheme, width, hash });
        await drawAll(page);
        await screenshot(page, `report-${name}${hash ? '-case' : ''}-${scheme}-${width}`);
        await checkLayout(page);
        await checkContrast(page);
        assert.equal(await page.evaluate(() => document.getAnimations().length), 0);
        const figures = await checkTables(page);
        if (name === 'report') assert.ok(figures >= (hash ? 10 : 12), `${figures} pictures`);
        await checkLayout(page);
        await page.finish();
      }
    });

test('the copy button puts the line on the clipboard', async () => {
  const page = await open(run);
  await page.bringToFront();
  await Promise.all([
    said(page, 'copied'),
    page.click('.failure [aria-label="Copy command that reproduces it"]'),
  ]);
  assert.equal(await clipboard(page), failing[0].reproduce);
  assert.equal(
    await page.evaluate(() => getSelection().toString()),
    '',
    'not by the way without a clipboard',
  );
  await page.focus('.failure [aria-label="Copy shrunk case line"]');
  await page.keyboard.press('Enter');
  await until(page, () =>
    navigator.clipboard.readText().then((t) => t.startsWith('attention b=1 h=1 l=1x2')),
  );
  assert.equal(await clipboard(page), failing[0].shrunk);
  await page.finish();
});

test('without a clipboard the line is selected', async () => {
  const page = await open(run, {
    before: () => {
      Object.defineProperty(navigator, 'clipboard', { value: undefined });
      document.execCommand = () => false;
    },
  });
  await Promise.all([
    said(page, 'selected: press Ctrl+C'),
    page.click('.failure [aria-label="Copy command that reproduces it"]'),
  ]);
  assert.equal(await page.evaluate(() => getSelection().toString()), failing[0].reproduce);
  await page.finish();
});

test('filters and order are in the address; back and forward follow', async () => {
  const page = await open(run);
  await page.type('[name=filter]', 'dtype=BF16  causal');
  const expected = run.results.filter(
    (r) => /dtype=bf16/.test(r.case) && /causal/.test(`${r.case} ${r.reason}`),
  );
  await until(
    page,
    (n) => document.querySelectorAll('#case-table tbody tr').length === n,
    expected.length,
  );
  assert.equal(await page.evaluate(() => document.activeElement.name), 'filter');
  assert.match(await page.evaluate(() => location.hash), /filter=dtype/);
  await page.$eval('[name=filter]', (e) => {
    e.value = '';
    e.dispatchEvent(new Event('input'));
  });
  assert.equal((await rows(page)).length, run.results.length);
  await page.select('[name=outcome]', 'fail');
  assert.deepEqual(
    await rows(page),
    failing.map((f) => `${f.number}`),
  );
  assert.match(
    await text(page, '#cases ~ [role=status]'),
    new RegExp(`^${failing.length} of ${run.results.length}`),
  );
  await page.select('[name=dtype]', 'bf16');
  const both = failing.filter((f) => f.dtype === 'bf16').map((f) => `${f.number}`);
  assert.deepEqual(await rows(page), both);
  await page.goBack();
  await until(
    page,
    (n) => document.querySelectorAll('#case-table tbody tr').length === n,
    failing.length,
  );
  assert.equal(await page.$eval('[name=dtype]', (e) => e.value), '');
  await page.goForward();
  await until(
    page,
    (n) => document.querySelectorAll('#case-table tbody tr').length === n,
    both.length,
  );
  assert.equal(await page.$eval('[name=outcome]', (e) => e.value), 'fail');
  await page.type('[name=filter]', 'nothing fits this');
  await until(
    page,
    () => document.querySelector('#case-table').textContent === 'No case fits the filter.',
  );
  await page.finish();
});

test('the table sorts by a click, and by keyboard; the largest comes first, and what is no number above all', async () => {
  const data = structuredClone(run);
  data.results[5].worst = { O: { ratio: 'nan' } };
  const page = await open(data);
  await page.click('[data-sort=worst]');
  assert.equal(
    await page.$eval('th:has([data-sort=worst])', (e) => e.getAttribute('aria-sort')),
    'descending',
  );
  const worst = async () =>
    (await texts(page, '#case-table tbody tr td:nth-child(4)')).map((t) =>
      t === '' ? -1 : t === 'nan' || t === 'inf' ? Infinity : Number(t),
    );
  let values = await worst();
  assert.equal(values[0], Infinity);
  assert.deepEqual(
    values,
    [...values].sort((a, b) => (a === b ? 0 : b - a)),
  );
  assert.equal(
    await page.evaluate(() => document.activeElement.dataset.sort),
    'worst',
    'the focus stays',
  );
  await page.keyboard.press('Enter');
  values = await worst();
  assert.deepEqual(
    values,
    [...values].sort((a, b) => (a === b ? 0 : a - b)),
  );
  await page.click('[data-sort=line]');
  const lines = await texts(page, '#case-table tbody tr td:last-child');
  assert.deepEqual(
    lines,
    [...lines].sort((a, b) => a.localeCompare(b, 'en', { numeric: true })),
  );
  await page.goBack();
  await until(
    page,
    () =>
      document.querySelector('th:has([data-sort=worst])').getAttribute('aria-sort') === 'ascending',
  );
  await page.finish();
});

test('a case has an address; a row, a mark and the keyboard lead there, and back leads back', async () => {
  for (const file of [false, true]) {
    const page = await open(run, { hash: '#outcome=fail', file });
    await page.click('#case-table tbody tr:nth-child(2) td:nth-child(3)');
    const number = failing[1].number;
    await until(
      page,
      (n) =>
        location.hash === `#case=${n}` && !document.querySelector('#overview').checkVisibility(),
      number,
    );
    assert.match(await text(page, '#case h2'), new RegExp(`^Case ${number} of`));
    assert.equal(await text(page, '#case .reason'), failing[1].reason);
    assert.ok((await text(page, '#case')).includes('Largest error of each output'));
    await page.evaluate(() =>
      [...document.querySelectorAll('#case nav a')]
        .find((a) => a.textContent === 'Next failure')
        .click(),
    );
    await until(
      page,
      (n) => document.querySelector('#case h2').textContent.startsWith(`Case ${n} `),
      failing[2].number,
    );
    await page.goBack();
    await until(
      page,
      (n) => document.querySelector('#case h2').textContent.startsWith(`Case ${n} `),
      number,
    );
    await until(page, () => scrollY === 0);
    await page.goBack();
    await until(
      page,
      () =>
        document.querySelector('#overview').checkVisibility() && !document.querySelector('#case'),
    );
    assert.deepEqual(
      await rows(page),
      failing.map((f) => `${f.number}`),
    );
    await until(page, () => scrollY > 500); // the list is where it was
    await page.goForward();
    await until(page, () => document.querySelector('#case'));
    await page.click('#case .back');
    await until(
      page,
      () =>
        document.querySelector('#overview').checkVisibility() && location.hash === '#outcome=fail',
    );
    await page.focus('#case-table tbody a');
    await page.keyboard.press('Enter');
    await until(page, (n) => location.hash === `#case=${n}`, failing[0].number);
    await page.finish();
  }
});

test('nothing moves while pictures are drawn', async () => {
  for (const width of [1280, 360]) {
    const page = await open(run, { width });
    await painted(page);
    assert.ok((await page.$$('.chart:not(:has(svg))')).length > 0, 'some are not drawn yet');
    const before = await page.evaluate(() => document.documentElement.scrollHeight);
    await drawAll(page);
    assert.equal(await page.evaluate(() => document.documentElement.scrollHeight), before);
    await page.finish();
  }
});

test('a mark of the strip opens its case', async () => {
  const page = await open(run);
  const strip = await page.evaluateHandle(() =>
    [...document.querySelectorAll('figure')].find(
      (f) => f.querySelector('.title').textContent === 'Worst error / bound of each case',
    ),
  );
  await strip.evaluate((e) => e.scrollIntoView({ block: 'center' }));
  await until(page, (f) => f.querySelector('svg'), strip);
  // The first failing case is the first triangle.
  const at = await strip.evaluate((f) => {
    const marks = [...f.querySelectorAll('svg path')]
      .map((p) => p.getBoundingClientRect())
      .filter((r) => r.width > 5 && r.width < 14 && r.height > 5 && r.height < 14)
      .sort((a, b) => b.left - a.left);
    return { x: marks[0].left + marks[0].width / 2, y: marks[0].top + marks[0].height / 2 };
  });
  await page.mouse.click(at.x, at.y);
  await until(page, () => /^#case=\d+$/.test(location.hash));
  await page.finish();
});

test('an address that leads nowhere says so', async () => {
  for (const hash of ['#case=999', '#case=%3Cimg%20src%3Dx%20onerror%3Dhacked%3D1%3E', '#case=0']) {
    const page = await open(run, { hash });
    assert.match(await text(page, '#case h2'), /There is no case/);
    assert.match(await text(page, '#case'), /This run has 18 cases/);
    await checkHarmless(page);
    await page.finish();
  }
});

test('texts of the data stay text', async () => {
  const data = fixture('hostile'),
    evil = data.summary.sentence;
  for (const [width, hash] of [
    [1280, ''],
    [360, ''],
    [1280, '#case=1'],
    [360, '#case=2'],
  ]) {
    const page = await open(data, { width, hash });
    await drawAll(page);
    await page.evaluate(() => {
      for (const d of document.querySelectorAll('details')) d.open = true;
    });
    await drawAll(page);
    for (const button of await page.$$('.toggle'))
      if (await button.evaluate((b) => b.checkVisibility())) await button.click();
    await screenshot(page, `report-hostile${hash.replace('#case=', '-')}-${width}`);
    await checkHarmless(page);
    await checkLayout(page);
    const all = await page.$eval('body', (e) => e.textContent);
    assert.ok(
      all.includes(hash === '#case=2' ? 'L'.repeat(20000) : evil),
      'the text is there as it is',
    );
    await page.finish();
  }
});

test('nothing to show is said in a sentence', async () => {
  const page = await open(fixture('empty'));
  const all = await text(page, 'main');
  for (const sentence of [
    'Nothing was judged',
    'No case was run.',
    'This run measured no power.',
    'No fault was hunted.',
    'No fuzzer was run.',
    'The machine was not recorded.',
  ])
    assert.ok(all.includes(sentence), sentence);
  await page.finish();
  const bare = await open({});
  assert.match(await text(bare, 'main'), /Nothing was judged/);
  await bare.finish();
});

test('a run without failures says so first, and no more than that', async () => {
  const page = await open(fixture('pass'));
  assert.equal(await text(page, '.words'), 'Every case passed');
  assert.match(await text(page, 'section'), /No case failed\./);
  await page.finish();
  const data = fixture('pass');
  data.results[1].outcome = 'inconclusive';
  const open_ = await open(data);
  assert.equal(await text(open_, '.words'), 'No case failed; 1 did not pass');
  await open_.finish();
});

test('what lies beside the bound does not read as the bound', async () => {
  const data = fixture('pass');
  data.results[0].worst = { O: { ratio: 0.99996 } };
  data.results[1].worst = { O: { ratio: 1.00004 } };
  data.results[2].worst = { O: { ratio: 1 } };
  const page = await open(data);
  assert.deepEqual(await texts(page, '#case-table tbody td:nth-child(4)'), [
    '0.99996',
    '1.00004',
    '1',
  ]);
  assert.equal((await page.$$('#case-table .beyond')).length, 1);
  await page.finish();
});

test('planted faults: score, survivors, proofs, classes', async () => {
  const page = await open(run);
  const part = await page.$eval('#faults', (e) => e.parentElement.textContent);
  assert.match(part, /8 of 12 planted faults killed/);
  for (const f of run.faults.faults) assert.ok(part.includes(f.fault), f.fault);
  for (const f of run.faults.equivalent) assert.ok(part.includes(f.proof), f.fault);
  const fuzz = await page.$eval('#fuzz', (e) => e.parentElement.textContent);
  for (const f of run.fuzz)
    assert.ok(fuzz.includes(f.target) && fuzz.includes(f.executions.toLocaleString('en-US')));
  assert.ok(fuzz.includes(run.fuzz[1].findings[0].reason));
  await page.finish();
});

test('a page of planted faults alone, and of fuzzers alone: their own words, and no section without content', async () => {
  const { faults, fuzz, machine } = run;
  for (const [data, words, sections] of [
    [{ faults, machine }, /^4 planted faults survived$/, ['faults', 'machine']],
    [
      {
        faults: { ...faults, faults: faults.faults.filter((f) => f.killed), unplanted: [] },
        machine,
      },
      /^All 8 planted faults were killed$/,
      ['faults', 'machine'],
    ],
    [
      {
        faults: {
          ...faults,
          faults: faults.faults.filter((f) => f.killed).slice(0, 1),
          unplanted: [
            {
              suite: 'smoke',
              cases: 3,
              seconds: 1,
              false_alarm: true,
              case: 'attention',
              reason: 'x',
            },
          ],
        },
      },
      /^1 false alarm$/,
      ['faults', 'machine'],
    ],
    [
      { faults: { faults: [], equivalent: [], unplanted: [] } },
      /^No fault was hunted$/,
      ['faults', 'machine'],
    ],
    [{ fuzz, machine }, /^1 finding$/, ['fuzz', 'machine']],
    [{ fuzz: fuzz.slice(0, 1) }, /^No findings$/, ['fuzz', 'machine']],
  ]) {
    const page = await open(data);
    assert.match(await text(page, '.words'), words);
    assert.deepEqual(await page.$$eval('section h2', (hs) => hs.map((h) => h.id)), sections);
    await drawAll(page);
    await checkLayout(page);
    await checkContrast(page);
    await page.finish();
  }
});

test('by keyboard alone: every control is reached and the focus is seen', async () => {
  const page = await open(run);
  await page.evaluate(() =>
    document.querySelectorAll('.failure[open]').forEach((d) => {
      d.open = false;
    }),
  );
  const seen = new Set();
  for (let i = 0; i < 90; i++) {
    await page.keyboard.press('Tab');
    const at = await page.evaluate(() => {
      const e = document.activeElement,
        style = getComputedStyle(e);
      return {
        what: e.className || e.name || e.dataset?.sort || e.tagName,
        outline: style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2,
      };
    });
    if (at.what === 'BODY') break;
    assert.ok(at.outline, `${at.what} shows no focus`);
    seen.add(at.what);
  }
  for (const what of ['scheme', 'copy', 'toggle', 'scroll', 'filter', 'outcome', 'dtype', 'worst'])
    assert.ok(seen.has(what), `${what} is not reached`);
  await page.finish();
});

test('the scheme can be chosen, and is kept', async () => {
  const page = await open(run, { scheme: 'light' });
  const background = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const ink = () => page.$eval('.chart svg text', (e) => getComputedStyle(e).fill);
  await drawAll(page);
  const light = await background(),
    inkLight = await ink();
  await page.click('.scheme');
  assert.equal(await text(page, '.scheme'), 'Colours: light');
  assert.equal(await background(), light);
  await page.click('.scheme');
  assert.notEqual(await background(), light);
  assert.notEqual(await ink(), inkLight, 'the pictures follow');
  await page.reload();
  await page.waitForSelector('#overview');
  assert.equal(await text(page, '.scheme'), 'Colours: dark');
  assert.notEqual(await background(), light);
  await page.click('.scheme');
  assert.equal(await background(), light);
  await page.finish();
});

test('of a thousand failures fifty are made at first, and all can be listed', async () => {
  const data = { ...run, results: Array.from({ length: 1000 }, () => failing[0]) };
  const page = await open(data);
  assert.equal((await page.$$('.failure')).length, 50);
  await page.click('#failures ~ .more');
  assert.equal((await page.$$('.failure')).length, 1000);
  assert.equal((await rows(page)).length, 300);
  await page.click('#case-table .more');
  assert.equal((await rows(page)).length, 1000);
  await page.finish();
});

const card = (page, title) =>
  page.$$eval(
    '#case .card',
    (all, t) => all.find((c) => c.querySelector('h4')?.textContent === t)?.textContent,
    title,
  );

test('lanes are told as places in a tile', async () => {
  const data = structuredClone(run);
  data.results[0].power.lanes = { last_full: { deleted: 'f80d', exchanged: '1' } };
  const page = await open(data, { hash: '#case=1' });
  const told = await card(page, 'Power: lanes');
  assert.match(told, /last fulldeleted0 to 3, 7, 12, 14 to 15/);
  assert.match(told, /last fullexchanged0$/);
  assert.doesNotMatch(told, /f80d|exadecimal/);
  await page.finish();
});

test('what was not compared is not shown by it', async () => {
  const data = structuredClone(run);
  assert.ok('LSE' in data.results[0].elements.compared);
  const both = await open(data, { hash: '#case=1' });
  assert.match(await card(both, 'Power'), /LSE/);
  await both.finish();
  delete data.results[0].elements.compared.LSE;
  const page = await open(data, { hash: '#case=1' });
  assert.doesNotMatch(await card(page, 'Power'), /LSE/);
  await page.finish();
});

test('a run in which no case passed has power by case only, and says so', async () => {
  const data = structuredClone(run);
  data.results = data.results.filter((r) => r.outcome === 'fail' && r.power?.pairs > 0);
  data.summary.adequacy = {};
  assert.ok(data.results.length > 0);
  const page = await open(data);
  const all = await text(page, 'main');
  assert.ok(all.includes('Only passes count here, and no case passed.'));
  assert.ok(!all.includes('This run measured no power'));
  await page.finish();
});

test('why a case was not judged is on the first page, and its own page has no empty card', async () => {
  const at = run.results.findIndex((r) => r.outcome === 'unsupported');
  const reason = run.results[at].reason;
  const page = await open(run);
  assert.ok(reason.length > 0);
  assert.ok((await texts(page, '.scroll td')).includes(reason));
  const rows = await texts(page, '#case-table tbody tr');
  assert.ok(rows[at].includes(reason), rows[at]);
  await page.finish();
  const own = await open(run, { hash: `#case=${at + 1}` });
  for (const c of await own.$$('#case .card'))
    assert.ok((await c.$$('dd, td')).length > 0, await c.evaluate((e) => e.textContent));
  await own.finish();
});
