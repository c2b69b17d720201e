// The report of one run.
import { boundLine, colour, figure, level, ratioAxis, seriesLook, tip } from './chart.mjs';
import {
  address,
  beyond,
  copyLine,
  count,
  data,
  el,
  exact,
  facts,
  go,
  has,
  link,
  matcher,
  outcome,
  percent,
  plural,
  rank,
  ratioCell,
  real,
  schemeButton,
  scroller,
  search,
  seconds,
  select,
  sortable,
  start,
  table,
} from './page.mjs';
import { pictures, worstRatio } from './pictures.mjs';

const run = data();
const summary = run.summary ?? {};
const cases = (run.results ?? []).map((result, i) => ({
  number: i + 1,
  result,
  worst: worstRatio(result),
}));
const bad = (c) => c.result.outcome === 'fail' || c.result.outcome === 'error';
const failures = cases.filter(bad);
const main = document.querySelector('main');
document.title = `Assay: ${run.candidate ?? ''} on ${run.suite ?? ''}`;

const section = (id, title, ...content) =>
  el('section', { 'aria-labelledby': id }, el('h2', { id, tabindex: -1 }, title), content);
const text = (v) =>
  typeof v === 'string' ? v : typeof v === 'number' ? exact(v) : JSON.stringify(v);

// One case with all its fields.

const place = (w) =>
  ['b', 'h', 'row', 'column', 'tile']
    .filter((k) => has(w[k]))
    .map((k) => `${k}=${w[k]}`)
    .join(', ');

// Fields that are shown elsewhere on the page. Any other field of a result is listed as it is, so
// that nothing of the JSON is lost.
const known = [
  'case',
  'candidate',
  'diagnosis',
  'dtype',
  'reproduce',
  'outcome',
  'reason',
  'contract',
  'arithmetic',
  'elements',
  'not_finite',
  'rows',
  'worst',
  'first_failure',
  'evidence',
  'by_evidence',
  'bias',
  'power',
  'quantization',
  'gradient_power',
  'relations',
  'seconds',
  'shrunk',
  'maps',
  'heads',
  'tiles',
  'ulps',
  'mask',
  'weights',
];

// A card of what is known. Where nothing is known, there is no card.
function pairs(title, object, show = text) {
  const present = Object.entries(object ?? {}).filter(([, v]) => has(v));
  return (
    present.length > 0 &&
    el(
      'div',
      { class: 'card' },
      el('h4', {}, title),
      facts(present.map(([k, v]) => [k.replaceAll('_', ' '), show(v)])),
    )
  );
}

// What a failing case looks like: the hypotheses that explain its errors.
const looksLike = (d) =>
  (d?.explanations ?? []).length > 0 &&
  el(
    'p',
    { class: 'reason' },
    `Looks like: ${d.explanations.map((e) => `${e.words} (s ${real(e.median)}, at most ${real(e.largest)})`).join('; or ')}`,
  );
const relation = ({ result, why, declined }) =>
  [
    has(why) ? `${result}: ${why}` : result,
    ...Object.entries(declined ?? {}).map(([reason, n]) => `${n} declined: ${reason}`),
  ].join('; ');

function shownTable(title, power, compared, whole) {
  const changes = Object.entries(power.shown ?? {});
  if (changes.length === 0) return null;
  // An LSE that was not compared shows nothing.
  const columns = [
    ...new Set(changes.flatMap(([, by]) => (typeof by === 'object' ? Object.keys(by) : ['shown']))),
  ].filter((c) => c !== 'lse' || !has(compared) || has(compared.LSE));
  return el(
    'div',
    { class: 'card' },
    el('h4', {}, title),
    el('p', {}, whole),
    scroller(
      title,
      table(
        null,
        ['change', ...columns.map((c) => [c === 'o' ? 'O' : c === 'lse' ? 'LSE' : c])],
        changes.map(([change, by]) => [
          change,
          ...columns.map((c) => count(typeof by === 'object' ? by[c] : by)),
        ]),
      ),
    ),
  );
}

// The lanes of a hexadecimal set, with lane 0 in the lowest bit of the first digit: "0 to 12, 15".
function lanesOf(set) {
  const runs = [];
  [...set].forEach((digit, k) => {
    const bits = Number.parseInt(digit, 16);
    for (let b = 0; b < 4; b++) {
      if (!((bits >> b) & 1)) continue;
      const lane = 4 * k + b,
        last = runs.at(-1);
      if (last?.[1] === lane - 1) last[1] = lane;
      else runs.push([lane, lane]);
    }
  });
  return runs.map(([a, b]) => (a === b ? `${a}` : `${a} to ${b}`)).join(', ');
}

// How a failure is known: an element is outside its bound, or the errors are no arithmetic's.
const knownBy = (r) =>
  r.outcome !== 'fail'
    ? ''
    : r.by_evidence
      ? 'by evidence'
      : r.elements?.outside > 0
        ? 'proved'
        : '';
// Such a reason says so of itself; beside the outcome it need not.
const reasonOf = (r) =>
  (r.reason ?? '').replace(knownBy(r) === 'by evidence' ? /^by evidence: / : '', '');
const outcomeOf = (r) => [outcome(r.outcome), has(knownBy(r)) && `, ${knownBy(r)}`];

// Whether errors are typical of an arithmetic: the largest row of each output, and the faults of
// which the errors hold most.
function evidence({ evidence: e }) {
  if (!e) return null;
  if (!has(e.arithmetic))
    return el('p', { class: 'dim' }, `Whether errors are typical was not asked: ${e.not_asked}.`);
  const rows = Object.entries(e.rows ?? {});
  const mark = (value, over) => el('span', { class: over && 'beyond' }, real(value));
  // A share that is too small to matter counts less, and none is as large as a hundred.
  const counts = ({ share, z, least }) => {
    const size = Math.abs(rank(share));
    return size > 100 ? 0 : Math.abs(rank(z)) * (size < least ? size / least : 1);
  };
  return el(
    'div',
    { class: 'evidence' },
    el('h3', {}, 'Evidence'),
    el(
      'p',
      {},
      e.fits
        ? `The errors are typical of ${e.arithmetic}.`
        : `No arithmetic makes such errors; they come nearest to those of ${e.arithmetic}.`,
      ` ${plural(e.rows_asked ?? 0, 'row')} and ${plural(e.questions ?? 0, 'fault')} were asked, beside ${plural(e.replicates ?? 0, 'replicate')} (seed ${e.seed}).`,
      has(e.not_asked) && ` Not asked: ${e.not_asked}.`,
    ),
    rows.length > 0 &&
      scroller(
        'Errors in units of typical ones',
        table(
          'Errors in units of typical ones: the largest row of each output',
          ['output', ['s'], ['limit'], ['median'], 'place'],
          rows.map(([name, w]) => [
            name,
            mark(w.s, rank(w.s) > w.limit),
            real(w.limit),
            real(w.median),
            name === 'C'
              ? `${w.of_column ? 'column' : 'row'} ${w.row}`
              : `b=${w.b}, h=${w.h}, ${name === 'dK' || name === 'dV' ? 'key' : 'row'}=${w.row}`,
          ]),
        ),
      ),
    (e.filters ?? []).length > 0 &&
      scroller(
        'Faults in the errors',
        table(
          'Faults in the errors: those that are most certain',
          ['fault', ['share'], ['counts from'], ['z'], ['limit of z']],
          e.filters.map((f) => [
            f.fault,
            real(f.share),
            real(f.least),
            mark(f.z, counts(f) > e.z_limit),
            real(e.z_limit),
          ]),
        ),
      ),
  );
}

function details(c) {
  const r = c.result,
    e = r.elements ?? {},
    first = r.first_failure;
  const worst = Object.entries(r.worst ?? {}).sort((a, b) => rank(b[1].ratio) - rank(a[1].ratio));
  const power = r.power ?? {};
  const { shown, lanes, pairs: visible, ...restOfPower } = power;
  return [
    el(
      'dl',
      { class: 'lines' },
      el('dt', {}, 'Case'),
      el('dd', {}, copyLine(r.case ?? '', 'case line')),
      has(r.shrunk) && [
        el('dt', {}, 'Shrunk'),
        el('dd', {}, copyLine(r.shrunk, 'shrunk case line')),
      ],
      has(r.reproduce) && [
        el('dt', {}, 'Reproduce'),
        el('dd', {}, copyLine(r.reproduce, 'command that reproduces it')),
      ],
    ),
    first &&
      el(
        'div',
        { class: 'first' },
        el('h3', {}, 'First failing element'),
        facts([
          ['why', first.why],
          ['place', place(first)],
          ['got', exact(first.got)],
          ['exact', exact(first.exact)],
          ['bound', real(first.bound)],
          ['error / bound', real(first.ratio)],
          ['ulp', has(first.ulp) && `${real(first.ulp)} ulp`],
        ]),
      ),
    evidence(r),
    pictures(r),
    worst.length > 0 &&
      el(
        'div',
        {},
        el('h3', {}, 'Largest error of each output'),
        scroller(
          'Largest error of each output',
          table(
            null,
            ['output', ['error / bound'], 'place', ['got'], ['exact'], ['bound'], ['error in ulp']],
            worst.map(([name, w]) => [
              name,
              ratioCell(w.ratio),
              place(w),
              exact(w.got),
              exact(w.exact),
              real(w.bound),
              real(w.ulp),
            ]),
          ),
        ),
      ),
    el(
      'div',
      { class: 'cards' },
      pairs(
        'Elements',
        {
          ...Object.fromEntries(
            Object.entries(e.compared ?? {}).map(([k, v]) => [`compared of ${k}`, v]),
          ),
          inside: e.inside,
          outside: e.outside,
          'hull only': e.hull_only,
          exact: e.exact,
        },
        count,
      ),
      pairs('Failing elements', e.failures, count),
      pairs('Excused', e.excused, count),
      pairs('Not finite', r.not_finite, count),
      pairs('Rows', r.rows),
      pairs('Relations', r.relations, relation),
      pairs('Seconds', r.seconds, seconds),
      r.bias &&
        pairs(
          'Bias',
          { 'mean signed error / bound': r.bias.mean_ratio, 'slope t': r.bias.slope_t },
          real,
        ),
      pairs('Contract', { contract: r.contract, candidate: r.candidate, dtype: r.dtype }),
      pairs(
        r.arithmetic?.declared ? 'Declared arithmetic' : 'Arithmetic of this rung',
        r.arithmetic?.attention ?? r.arithmetic?.product,
      ),
      pairs('Arithmetic of gradients', r.arithmetic?.gradients),
      shownTable(
        'Power',
        power,
        e.compared,
        `Faults that this case would have shown, of ${has(visible) ? plural(visible, 'visible pair') : 'its terms'}.`,
      ),
      pairs('Power: further', restOfPower),
      lanes &&
        Object.keys(lanes).length > 0 &&
        el(
          'div',
          { class: 'card' },
          el('h4', {}, 'Power: lanes'),
          el(
            'p',
            {},
            `Places in a tile${has(power.tile) ? ` of ${power.tile}` : ''} where the change would have shown, by the kind of tile.`,
          ),
          scroller(
            'Lanes',
            table(
              null,
              ['tile', 'change', 'lanes'],
              Object.entries(lanes).flatMap(([kind, by]) =>
                Object.entries(by).map(([change, set]) => [
                  kind.replaceAll('_', ' '),
                  change,
                  lanesOf(set),
                ]),
              ),
            ),
          ),
        ),
      r.gradient_power &&
        pairs(
          'Power of gradients',
          Object.fromEntries(
            Object.entries(r.gradient_power).map(([k, v]) => [
              k === 'pairs' ? 'visible pairs' : `would be missed in ${k}`,
              v,
            ]),
          ),
          count,
        ),
      pairs('Quantization', r.quantization),
      pairs('Further', Object.fromEntries(Object.entries(r).filter(([k]) => !known.includes(k)))),
    ),
  ];
}

// The run.

// A page of planted faults alone, or of fuzzers alone.
const others = !run.results && (run.faults || run.fuzz);

function verdictOfOthers() {
  const list = run.faults?.faults ?? [],
    survived = list.filter((f) => !f.killed).length,
    alarms = (run.faults?.unplanted ?? []).filter((u) => u.false_alarm).length;
  const findings = (run.fuzz ?? []).reduce((n, f) => n + (f.findings ?? []).length, 0),
    executions = (run.fuzz ?? []).reduce((n, f) => n + (f.executions ?? 0), 0);
  const words = [
    run.faults &&
      (list.length === 0
        ? 'No fault was hunted'
        : survived > 0
          ? `${plural(survived, 'planted fault')} survived`
          : alarms > 0
            ? plural(alarms, 'false alarm')
            : `${list.length === 1 ? 'The planted fault was' : `All ${count(list.length)} planted faults were`} killed`),
    run.fuzz &&
      (executions === 0
        ? 'No fuzzer was run'
        : findings > 0
          ? plural(findings, 'finding')
          : 'No findings'),
  ]
    .filter(Boolean)
    .join('; ');
  const bad = survived + alarms + findings > 0,
    nothing = list.length === 0 && executions === 0;
  return el(
    'div',
    { class: `verdict ${bad ? 'bad' : nothing ? 'open' : 'good'}` },
    el('p', { class: 'words' }, words),
    executions > 0 && el('p', { id: 'sentence' }, plural(executions, 'execution')),
  );
}

function verdict() {
  if (others) return verdictOfOthers();
  const failed = failures.length,
    errors = cases.filter((c) => c.result.outcome === 'error').length,
    passed = cases.filter((c) => c.result.outcome === 'pass').length,
    conventionFails = (summary.conventions ?? []).some((c) => c.rule === 'fail');
  const [kind, words] =
    failed - errors > 0
      ? ['bad', `${plural(failed - errors, 'case')} failed`]
      : errors > 0
        ? ['bad', `${plural(errors, 'case')} could not be judged`]
        : conventionFails
          ? ['bad', 'No error of arithmetic, but a convention that nobody declared']
          : cases.length === 0
            ? ['open', 'Nothing was judged']
            : passed === cases.length
              ? ['good', 'Every case passed']
              : passed === 0
                ? ['open', 'No case passed, none failed']
                : ['open', `No case failed; ${count(cases.length - passed)} did not pass`];
  const outcomes = ['fail', 'error', 'convention', 'suspect', 'inconclusive', 'unsupported', 'pass']
    .map((o) => [o, cases.filter((c) => c.result.outcome === o).length])
    .filter(([, n]) => n > 0);
  return el(
    'div',
    { class: `verdict ${kind}` },
    el('p', { class: 'words' }, words),
    el('p', { id: 'sentence' }, summary.sentence ?? ''),
    el(
      'p',
      { class: 'counts' },
      outcomes.map(([o, n]) =>
        el(
          'a',
          { href: link({ outcome: o }), onclick: (e) => jump(e, 'cases', { outcome: o }) },
          outcome(o),
          ` ${count(n)}`,
        ),
      ),
      summary.not_run > 0 && el('span', {}, `${count(summary.not_run)} not run`),
    ),
    has(run.command) && copyLine(run.command, 'command of this run'),
  );
}

function jump(event, id, state) {
  event.preventDefault();
  if (state) go(state);
  const heading = document.getElementById(id);
  heading.scrollIntoView();
  heading.focus({ preventScroll: true });
}

// The failures of one cause in one row.
const causes = () =>
  (summary.causes ?? []).length > 0 &&
  scroller(
    'Failures by cause',
    table(
      'Failures by cause',
      [['cases'], 'outcome', 'reason', 'what they have', 'reproduce'],
      summary.causes.map((c) => [
        count(c.cases),
        c.outcome,
        c['looks like'] ? `${c.reason}; looks like: ${c['looks like']}` : c.reason,
        (c.features ?? []).join(', '),
        el('code', {}, c.reproduce),
      ]),
    ),
  );

function failureList() {
  if (failures.length === 0)
    return el('p', { class: 'empty' }, cases.length === 0 ? 'No case was run.' : 'No case failed.');
  // The contents are made when they are opened, because a run may have a thousand failures.
  const entry = (c, i) => {
    const fill = () => {
      if (body.childElementCount === 0) body.append(...details(c).flat(Infinity).filter(Boolean));
    };
    const body = el('div', { class: 'body' });
    if (i === 0) fill();
    return el(
      'details',
      { class: 'failure', open: i === 0, ontoggle: fill },
      el(
        'summary',
        {},
        el(
          'span',
          { class: 'summary' },
          outcomeOf(c.result),
          ' ',
          el('strong', {}, reasonOf(c.result)),
          has(c.worst.ratio) &&
            el(
              'span',
              { class: 'dim' },
              ` worst error / bound ${real(c.worst.ratio)} in ${c.worst.output}`,
            ),
          el('code', {}, c.result.case ?? ''),
        ),
      ),
      el('p', {}, el('a', { href: link({ case: c.number }) }, `Case ${c.number} on its own`)),
      looksLike(c.result.diagnosis),
      body,
    );
  };
  const list = el('div', { id: 'failure-list' });
  const more = el('button', { type: 'button', class: 'more', onclick: () => add(failures.length) });
  let shown = 0;
  const add = (until) => {
    for (; shown < Math.min(until, failures.length); shown++)
      list.append(entry(failures[shown], shown));
    more.hidden = shown === failures.length;
    more.textContent = `Show all ${count(failures.length)} failures`;
  };
  add(50);
  return [
    has(summary.shared?.sentence) && el('p', { class: 'shared' }, summary.shared.sentence),
    failures.length > 1 && causes(),
    list,
    more,
  ];
}

// Why cases neither passed nor failed, with the number of cases for each reason.
function notJudged() {
  const why = new Map();
  for (const { result: r } of cases) {
    if (r.outcome !== 'unsupported' && r.outcome !== 'inconclusive') continue;
    const key = JSON.stringify([r.outcome, r.reason ?? '']);
    why.set(key, (why.get(key) ?? 0) + 1);
  }
  const title = 'Cases that neither passed nor failed';
  return (
    why.size > 0 &&
    scroller(
      title,
      table(
        title,
        ['outcome', 'reason', ['cases']],
        [...why]
          .sort((a, b) => b[1] - a[1])
          .map(([key, n]) => {
            const [o, reason] = JSON.parse(key);
            return [outcome(o), reason, count(n)];
          }),
      ),
    )
  );
}

// Conventions that nobody declared, each once, with the option that accepts it.
const conventions = () =>
  (summary.conventions ?? []).length > 0 &&
  scroller(
    'Conventions that differ',
    table(
      'Conventions that differ',
      ['convention', 'what it changes', ['cases'], 'then', 'the first case'],
      summary.conventions.map((c) => [
        el('code', {}, `--accept-convention ${c.convention}`),
        c.what,
        count(c.cases),
        c.rule,
        el('code', {}, c.case),
      ]),
    ),
  );

const shareBar = (part, whole) =>
  el(
    'span',
    { class: 'bar wide', 'aria-hidden': 'true' },
    el('span', { style: `width:${whole ? (100 * part) / whole : 0}%` }),
  );

// Why a run has no power of its own. Its cases may have some all the same.
const noPower = () =>
  cases.some((c) => c.result.power?.pairs > 0)
    ? 'Only passes count here, and no case passed.'
    : 'This run measured no power.';

function power() {
  const cells = Object.entries(summary.adequacy ?? {});
  const missing = cells.filter(([, c]) => c.missing && Object.keys(c.missing).length > 0);
  return [
    el(
      'p',
      {},
      'A pass says as much as the faults it could have shown. A cell is a lane of a kind of tile and a change of one key, or of one term of a sum, there (deleted, counted twice, V exchanged with its neighbour, ' +
        'weight off by 1%); shown means that some case of the run would have moved an output by more than twice its bound.',
    ),
    cells.length === 0
      ? el('p', { class: 'empty' }, noPower())
      : scroller(
          'Power',
          table(
            'Cells shown by this run',
            ['dtype and tile width', 'share', ['%'], ['cells shown'], ['cells']],
            cells.map(([name, c]) => [
              name,
              shareBar(c.shown, c.cells),
              percent(c.shown, c.cells),
              count(c.shown),
              count(c.cells),
            ]),
            { numbers: [false, false, true, true, true] },
          ),
        ),
    missing.length > 0 &&
      el(
        'details',
        {},
        el('summary', {}, 'Which cells are missing'),
        missing.map(([name, c]) => {
          const changes = [...new Set(Object.values(c.missing).flatMap((by) => Object.keys(by)))];
          return scroller(
            `Missing of ${name}`,
            table(
              `${name}: lanes that no case has shown`,
              ['kind of tile', ...changes.map((k) => [k])],
              Object.entries(c.missing).map(([kind, by]) => [
                kind.replaceAll('_', ' '),
                ...changes.map((k) => count(by[k] ?? 0)),
              ]),
            ),
          );
        }),
      ),
  ];
}

function faults() {
  const f = run.faults;
  const list = f.faults ?? [],
    classes = new Map();
  for (const x of list) {
    const of = classes.get(x.class) ?? { killed: 0, all: 0 };
    (of.all++, (of.killed += x.killed ? 1 : 0));
    classes.set(x.class, of);
  }
  const names = [...classes.keys()].sort((a, b) => a.localeCompare(b, 'en', { numeric: true }));
  const survivors = list.filter((x) => !x.killed),
    alarms = (f.unplanted ?? []).filter((u) => u.false_alarm);
  const rows = (some) =>
    table(
      null,
      ['fault', 'class', 'suite', 'outcome', ['cases'], ['seconds'], 'killed by'],
      some.map((x) => [
        x.fault,
        x.class,
        x.suite,
        outcome(x.killed ? 'killed' : 'survived'),
        count(x.cases),
        seconds(x.seconds),
        x.killed ? [el('div', {}, x.reason), el('code', {}, x.case)] : '',
      ]),
    );
  if (list.length === 0) return el('p', { class: 'empty' }, 'No fault was hunted.');
  return [
    el(
      'p',
      { class: survivors.length + alarms.length > 0 ? 'bad' : 'good' },
      el(
        'strong',
        {},
        `${count(f.killed ?? list.length - survivors.length)} of ${plural(list.length, 'planted fault')} killed`,
      ),
      `; ${plural((f.equivalent ?? []).length, 'equivalent one')} left out; ${alarms.length === 0 ? 'no false alarm' : plural(alarms.length, 'false alarm')}${has(f.seed) ? `; seed ${f.seed}` : ''}.`,
    ),
    names.length > 0 &&
      figure({
        title: 'Score by class',
        note: 'Planted faults of each class, killed and survived.',
        summary: `${survivors.length} survived.`,
        height: 240,
        option: () => ({
          grid: { left: 44, right: 14, top: 58, bottom: 44 },
          legend: {},
          tooltip: {
            trigger: 'axis',
            formatter: ([{ dataIndex: i }]) =>
              tip(
                names[i],
                `${classes.get(names[i]).killed} of ${classes.get(names[i]).all} killed`,
              ),
          },
          xAxis: {
            type: 'category',
            data: names,
            name: 'class',
            nameLocation: 'middle',
            nameGap: 28,
          },
          yAxis: {
            type: 'value',
            minInterval: 1,
            name: 'faults',
            nameTextStyle: { align: 'left' },
          },
          series: [
            {
              name: 'killed',
              type: 'bar',
              stack: 'all',
              barMaxWidth: 30,
              itemStyle: { color: colour('h3') },
              data: names.map((n) => classes.get(n).killed),
            },
            {
              name: 'survived',
              type: 'bar',
              stack: 'all',
              barMaxWidth: 30,
              itemStyle: {
                color: colour('f1'),
                decal: {
                  symbol: 'rect',
                  dashArrayX: [1, 0],
                  dashArrayY: [2, 5],
                  rotation: -Math.PI / 4,
                  color: colour('bg'),
                },
              },
              data: names.map((n) => classes.get(n).all - classes.get(n).killed),
            },
          ],
        }),
        table: () =>
          table(
            'Score by class',
            ['class', ['killed'], ['faults'], ['%']],
            names.map((n) => [
              n,
              classes.get(n).killed,
              classes.get(n).all,
              percent(classes.get(n).killed, classes.get(n).all),
            ]),
          ),
      }),
    el('h3', {}, 'Survivors'),
    survivors.length === 0
      ? el('p', { class: 'empty' }, 'No fault survived.')
      : scroller('Survivors', rows(survivors)),
    (f.unplanted ?? []).length > 0 && [
      el('h3', {}, 'The kernels without a fault'),
      scroller(
        'The kernels without a fault',
        table(
          null,
          ['suite', ['cases'], ['seconds'], 'false alarm'],
          f.unplanted.map((u) => [
            u.suite,
            count(u.cases),
            seconds(u.seconds),
            u.false_alarm ? [outcome('fail'), ' ', u.reason, el('code', {}, u.case)] : 'none',
          ]),
        ),
      ),
    ],
    el(
      'details',
      {},
      el('summary', {}, `All ${plural(list.length, 'fault')}`),
      scroller('All faults', rows(list)),
    ),
    (f.equivalent ?? []).length > 0 &&
      el(
        'details',
        {},
        el(
          'summary',
          {},
          `${plural(f.equivalent.length, 'fault')} that no input can show, with proof`,
        ),
        scroller(
          'Equivalent faults',
          table(
            null,
            ['fault', 'class', 'proof'],
            f.equivalent.map((x) => [x.fault, x.class, x.proof]),
          ),
        ),
      ),
    has(f.out_of_reach) &&
      (Array.isArray(f.out_of_reach) ? f.out_of_reach.length : f.out_of_reach) > 0 &&
      el(
        'p',
        { class: 'dim' },
        Array.isArray(f.out_of_reach)
          ? `Left out, as the suite runs no case of their operation: ${f.out_of_reach.map((x) => x.fault ?? x).join(', ')}.`
          : `${plural(f.out_of_reach, 'fault')} left out: the suite runs no case of their operation.`,
      ),
  ];
}

const fuzz = () =>
  run.fuzz.length === 0
    ? el('p', { class: 'empty' }, 'No fuzzer was run.')
    : [
        scroller(
          'Fuzzing',
          table(
            null,
            [
              'target',
              ['seconds'],
              ['executions'],
              ['per second'],
              ['coverage'],
              ['corpus'],
              ['findings'],
              'finished',
            ],
            run.fuzz.map((f) => [
              f.target,
              seconds(f.seconds),
              count(f.executions),
              count(Math.round(f.executions_per_second)),
              count(f.coverage),
              count(f.corpus),
              count((f.findings ?? []).length),
              f.finished === false
                ? 'no: stopped early'
                : has(f.finished)
                  ? f.finished === true
                    ? 'yes'
                    : String(f.finished)
                  : '',
            ]),
          ),
        ),
        run.fuzz.flatMap((f) =>
          (f.findings ?? []).map((x) =>
            el(
              'div',
              { class: 'finding' },
              el('p', {}, el('strong', {}, f.target), ': ', x.reason),
              copyLine(x.case ?? '', 'case of the finding'),
            ),
          ),
        ),
      ];

// The outputs as columns; only those that the run has.
const columnsOfRatio = [
  ['O', ['O']],
  ['LSE', ['LSE']],
  ['gradients', ['dQ', 'dK', 'dV', 'dBias', 'dSink']],
  ['C', ['C']],
]
  .map(([title, outputs]) => ({
    title,
    of: (c) =>
      outputs
        .map((o) => c.result.worst?.[o]?.ratio)
        .filter(has)
        .sort((a, b) => rank(b) - rank(a))[0],
  }))
  .filter(({ of }) => cases.some((c) => has(of(c))));

const dtypes = [...new Set(cases.map((c) => c.result.dtype).filter(has))].sort();
const outcomes = [...new Set(cases.map((c) => c.result.outcome))].sort();

function strip(some) {
  const symbols = {
    pass: 'circle',
    fail: 'triangle',
    error: 'triangle',
    suspect: 'rect',
    convention: 'rect',
    inconclusive: 'diamond',
    unsupported: 'diamond',
  };
  const judged = some.filter((c) => has(c.worst.ratio)),
    ratios = judged.map((c) => c.worst.ratio);
  const groups = [...new Set(judged.map((c) => c.result.outcome))];
  if (judged.length === 0) return null;
  return figure({
    title: 'Worst error / bound of each case',
    summary: `${plural(ratios.filter(beyond).length, 'case')} of ${judged.length} beyond the bound.`,
    note: 'Above the line an error is beyond its proved bound. A click opens the case.',
    height: 300,
    onclick: ({ name }) => go({ case: name }),
    option: () => ({
      grid: { left: 58, right: 50, top: 56, bottom: 44 },
      legend: { top: 0 },
      tooltip: {
        formatter: ({ seriesName, dataIndex: i }) => {
          const c = judged.filter((j) => j.result.outcome === seriesName)[i];
          return tip(
            `case ${c.number}: ${c.result.outcome}`,
            `error / bound ${real(c.worst.ratio)} in ${c.worst.output}`,
            c.result.case,
          );
        },
      },
      xAxis: {
        type: 'value',
        min: 0,
        max: cases.length + 1,
        minInterval: 1,
        name: 'case',
        nameLocation: 'middle',
        nameGap: 26,
        axisLabel: { showMaxLabel: false },
      },
      yAxis: ratioAxis(ratios, { fit: true }),
      series: groups.map((g, k) => ({
        name: g,
        type: 'scatter',
        symbol: symbols[g] ?? seriesLook(k).symbol,
        symbolSize: g === 'pass' ? 7 : 10,
        cursor: 'pointer',
        itemStyle: {
          color: colour(g === 'pass' ? 'h3' : g === 'fail' || g === 'error' ? 'f1' : 'dim'),
        },
        data: judged
          .filter((c) => c.result.outcome === g)
          .map((c) => ({ value: [c.number, level(c.worst.ratio)], name: `${c.number}` })),
        markLine: k === 0 ? boundLine() : undefined,
      })),
    }),
    table: () =>
      table(
        'Worst error / bound of each case',
        [['case'], 'outcome', 'output', ['error / bound']],
        judged.map((c) => [
          el('a', { href: link({ case: c.number }) }, `${c.number}`),
          c.result.outcome,
          c.worst.output,
          real(c.worst.ratio),
        ]),
      ),
  });
}

// The list of cases follows the address: #outcome=..&dtype=..&filter=..&sort=..
let list;
function casesSection() {
  list = {
    controls: el('div', { class: 'controls' }),
    said: el('p', { role: 'status' }),
    picture: el('div'),
    table: el('div', { id: 'case-table' }),
  };
  return section(
    'cases',
    'Cases',
    el(
      'p',
      {},
      'Largest error divided by its proved bound, over all elements of an output. 1 would be the bound itself; a case judged without tolerance alone has none.',
    ),
    list.controls,
    list.said,
    list.picture,
    list.table,
  );
}

let listed; // the state that the list shows
function showCases(state) {
  const { filter, outcome: wanted, dtype, sort } = state;
  const now = link({ filter, outcome: wanted, dtype, sort });
  if (listed?.hash === now) return;
  const set = (change, options) => {
    const { case: _, ...rest } = address();
    go({ ...rest, ...change }, options);
  };
  const input = list.controls.querySelector('input');
  if (!input)
    list.controls.append(
      search('Filter', filter, (v) => set({ filter: v }, { replace: true })),
      select('Outcome', 'outcome', outcomes, wanted, (v) => set({ outcome: v })),
      select('Dtype', 'dtype', dtypes, dtype, (v) => set({ dtype: v })),
    );
  else if (input.value.trim() !== (filter ?? '').trim()) input.value = filter ?? '';
  for (const [name, value] of [
    ['outcome', wanted],
    ['dtype', dtype],
  ])
    list.controls.querySelector(`[name=${name}]`).value = value ?? '';
  const focus = document.activeElement?.dataset?.sort;
  const match = matcher(filter);
  const some = cases.filter(
    ({ result: r }) =>
      (!has(wanted) || r.outcome === wanted) &&
      (!has(dtype) || r.dtype === dtype) &&
      match(`${r.case} ${r.reason ?? ''} ${r.outcome}`),
  );
  list.said.textContent = `${count(some.length)} of ${plural(cases.length, 'case')}`;
  const without = (s) => {
    const { filter: f, outcome: o, dtype: d } = s;
    return link({ f, o, d });
  };
  if (!listed || without(listed.state) !== without(state))
    list.picture.replaceChildren(...[strip(some)].filter(Boolean));
  list.table.replaceChildren(
    sortable({
      label: 'Cases',
      rows: some,
      sort,
      onsort: (s) => set({ sort: s }),
      empty: cases.length === 0 ? 'No case was run.' : 'No case fits the filter.',
      rowAttributes: (c) => ({
        class: 'row',
        onclick: (e) => {
          if (!e.target.closest('a') && getSelection().isCollapsed) go({ case: c.number });
        },
      }),
      columns: [
        {
          key: 'number',
          title: 'case',
          number: true,
          value: (c) => c.number,
          cell: (c) =>
            el(
              'a',
              { href: link({ case: c.number }), 'aria-label': `Case ${c.number}` },
              `${c.number}`,
            ),
        },
        {
          key: 'outcome',
          title: 'outcome',
          value: (c) => c.result.outcome,
          cell: (c) => outcome(c.result.outcome),
        },
        {
          key: 'dtype',
          title: 'dtype',
          value: (c) => c.result.dtype,
          cell: (c) => c.result.dtype ?? '',
        },
        {
          key: 'worst',
          title: 'worst',
          number: true,
          value: (c) => rank(c.worst.ratio),
          cell: (c) => ratioCell(c.worst.ratio),
        },
        ...columnsOfRatio.map(({ title, of }) => ({
          key: title,
          title,
          number: true,
          value: (c) => rank(of(c)),
          cell: (c) => real(of(c)),
        })),
        {
          key: 'seconds',
          title: 'candidate',
          number: true,
          value: (c) => c.result.seconds?.candidate ?? -1,
          cell: (c) => seconds(c.result.seconds?.candidate),
        },
        {
          key: 'line',
          title: 'case line',
          class: 'caseline',
          value: (c) => c.result.case,
          cell: (c) => [
            el('code', {}, c.result.case ?? ''),
            has(c.result.reason) && c.result.outcome !== 'pass' && el('div', {}, c.result.reason),
          ],
        },
      ],
    }),
  );
  if (focus)
    list.table.querySelector(`[data-sort="${CSS.escape(focus)}"]`)?.focus({ preventScroll: true });
  listed = { hash: now, state };
}

function machine() {
  const entries = Object.entries(run.machine ?? {});
  return el(
    'div',
    { class: 'cards' },
    el(
      'div',
      { class: 'card' },
      el('h3', {}, 'Machine'),
      entries.length === 0
        ? el('p', { class: 'empty' }, 'The machine was not recorded.')
        : facts(entries.map(([k, v]) => [k, text(v)])),
    ),
    el(
      'div',
      { class: 'card' },
      el('h3', {}, 'Run'),
      facts([
        ['suite', run.suite],
        ['candidate', run.candidate],
        ['seed', has(run.seed) && String(run.seed)],
        ['format', has(run.format) && String(run.format)],
        ['seconds', seconds(summary.seconds)],
        ['elements compared', count(summary.elements)],
        ['cases', count(summary.cases)],
        ['not run', summary.not_run > 0 && count(summary.not_run)],
      ]),
    ),
  );
}

function overview() {
  const parts = [
    !others && [
      'failures',
      `Failures (${count(failures.length)})`,
      [failureList(), conventions(), notJudged()],
    ],
    !others && ['power', 'Power', power()],
    run.faults && ['faults', 'Planted faults', faults()],
    run.fuzz && ['fuzz', 'Fuzzing', fuzz()],
    !others && ['cases', 'Cases'],
    ['machine', 'Machine and run', machine()],
  ].filter(Boolean);
  return el(
    'div',
    { id: 'overview' },
    verdict(),
    el(
      'nav',
      { 'aria-label': 'Sections' },
      parts.map(([id, title]) => el('a', { href: `#${id}`, onclick: (e) => jump(e, id) }, title)),
    ),
    parts.map(([id, title, content]) =>
      id === 'cases' ? casesSection() : section(id, title, content),
    ),
  );
}

function onCase(number) {
  const c = cases[number - 1];
  const back = el(
    'a',
    {
      href: link(listed?.state ?? {}),
      class: 'back',
      onclick: (e) => {
        e.preventDefault();
        go(listed?.state ?? {});
      },
    },
    'All cases',
  );
  if (!c)
    return el(
      'div',
      { id: 'case' },
      el('p', {}, back),
      el('h2', { tabindex: -1 }, `There is no case ${number}`),
      el('p', {}, `This run has ${plural(cases.length, 'case')}.`),
    );
  const step = (n, words) => cases[n - 1] && el('a', { href: link({ case: n }) }, words);
  const failing =
    failures.find((f) => f.number > number) ?? failures.find((f) => f.number !== number);
  return el(
    'div',
    { id: 'case' },
    el(
      'nav',
      { 'aria-label': 'Cases' },
      back,
      step(number - 1, 'Previous'),
      step(number + 1, 'Next'),
      failing && el('a', { href: link({ case: failing.number }) }, 'Next failure'),
    ),
    el(
      'h2',
      { tabindex: -1 },
      `Case ${count(number)} of ${count(cases.length)}: `,
      outcomeOf(c.result),
    ),
    has(c.result.reason) && el('p', { class: 'reason' }, reasonOf(c.result)),
    looksLike(c.result.diagnosis),
    details(c),
  );
}

let scrolled = 0,
  whole,
  shownCase;
start(() => {
  const state = address();
  if (has(state.case)) {
    if (whole && !whole.hidden) ((scrolled = scrollY), (whole.hidden = true));
    shownCase?.remove();
    shownCase = onCase(Number(state.case));
    main.append(shownCase);
    scrollTo(0, 0);
    shownCase.querySelector('h2').focus({ preventScroll: true });
    return;
  }
  const cameBack = shownCase;
  shownCase?.remove();
  shownCase = null;
  if (!whole) main.append((whole = overview()));
  whole.hidden = false;
  if (!others) showCases(state);
  if (cameBack) scrollTo(0, scrolled);
});
document
  .querySelector('header')
  .append(el('h1', {}, `Assay: ${run.candidate ?? ''} on ${run.suite ?? ''}`), schemeButton());
