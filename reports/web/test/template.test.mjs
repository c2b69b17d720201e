// What the program that fills the pages relies on, and what a page must never do.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { fill } from '../fill.mjs';
import { Bench } from './browser.mjs';

const bench = new Bench();
before(() => bench.start());
after(() => bench.stop());

for (const name of ['report', 'dashboard']) {
  test(`${name}: one place for the data, small, whole in itself`, () => {
    const html = bench.template(name);
    assert.equal(
      html
        .split('\n')
        .filter((line) => line === '<script type="application/json" id="data">@DATA@</script>')
        .length,
      1,
    );
    assert.equal(html.split('@DATA@').length, 2);
    assert.ok(Buffer.byteLength(html) < 700000, `${Buffer.byteLength(html)} bytes`);
    assert.match(
      html,
      /Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"/,
    );
    const head = html.slice(0, html.indexOf('<script>'));
    assert.doesNotMatch(head, /(src|href)="(?!data:)/);
    assert.doesNotMatch(head, /url\(|@import/);
  });

  test(`${name}: the page cannot reach the network`, async () => {
    const page = await bench.open(name, name === 'report' ? { results: [] } : { runs: [] });
    const blocked = await page.evaluate(async () => {
      const fetched = await fetch('/other').then(
        () => 'fetched',
        () => 'refused',
      );
      const image = await new Promise((done) => {
        const i = new Image();
        i.onload = () => done('loaded');
        i.onerror = () => done('refused');
        i.src = '/image.png';
      });
      return [fetched, image];
    });
    assert.deepEqual(blocked, ['refused', 'refused']);
    assert.ok(!bench.asked.some((url) => /other|image/.test(url)), 'nothing left the page');
    assert.ok(
      page.wrong.some((w) => /Content Security Policy/.test(w)),
      page.wrong.join('\n'),
    );
    await page.close();
  });
}

test('the bench hears what a page does wrong', async () => {
  const page = await bench.open('report', { results: [] });
  await page.evaluate(() => {
    console.error('wrong');
    setTimeout(() => {
      throw new Error('thrown');
    });
  });
  await new Promise((done) => setTimeout(done, 100));
  await assert.rejects(page.finish());
});

// Breaks the browser of a first run, and gives how often the body ran and what was told.
async function broken(how) {
  const other = new Bench({ limit: 15000 }),
    told = [];
  let ran = 0;
  await other.start();
  try {
    await other.tried(
      async () => {
        const page = await other.open('report', { results: [] });
        if (++ran === 1) how(other.browser.process());
        else other.limit = bench.limit;
        assert.equal(await page.evaluate(() => 1 + 1), 2);
        await page.finish();
      },
      (line) => told.push(line),
    );
  } finally {
    await other.stop();
  }
  return { ran, told };
}

for (const [name, signal] of [
  ['hangs', 'SIGSTOP'],
  ['has crashed', 'SIGKILL'],
])
  test(`a browser that ${name} fails no page: it is started anew, and that is told`, async () => {
    const { ran, told } = await broken((process) => process.kill(signal));
    // On a busy machine the second browser may be stuck as well.
    assert.ok(ran >= 2);
    assert.equal(told.length, ran - 1);
    assert.match(told[0], /started anew/);
  });

test('a failure in a browser that draws stands at once', async () => {
  let ran = 0;
  await assert.rejects(
    bench.tried(
      async () => {
        ++ran;
        await bench.open('report', { results: [] });
        assert.equal(1, 2);
      },
      () => assert.fail('the browser was taken for a stuck one'),
    ),
    /1 !== 2/,
  );
  assert.equal(ran, 1);
});

test('the filler refuses what is no template', () => {
  assert.throws(() => fill('nothing', '{}'), /one place/);
  assert.equal(fill('a@DATA@b', '"</script>$&"'), 'a"\\u003c/script>$&"b');
});
