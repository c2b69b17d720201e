// The dashboard over a store of runs: accuracy, speed, planted faults and fuzzing over time, each
// run, and the history of each case.
import {
  boundLine,
  colour,
  figure,
  level,
  ratioAxis,
  seriesFill,
  seriesLook,
  tip,
} from './chart.mjs';
import {
  address,
  copyLine,
  count,
  data,
  el,
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
  unpacked,
} from './page.mjs';
import { resultsOf } from './rows.mjs';

const main = document.querySelector('main');
let runs = [],
  earlier = 0, // runs of the store that are still to be read
  unread = '', // why they cannot be
  alarms = [],
  generated,
  byId = new Map();

function add(part) {
  const more = (part.runs ?? []).map((run) => ({
    ...run,
    results: resultsOf(run, part),
    where: machineName(run.machine ?? {}),
  }));
  runs = [...runs, ...more];
  runs.sort((a, b) => (a.started < b.started ? -1 : a.started > b.started ? 1 : a.id - b.id));
  byId = new Map(runs.map((r) => [String(r.id), r]));
  knownDtypes = undefined;
}

function read() {
  const store = data();
  generated = store.generated;
  earlier = store.earlier ?? 0;
  add(store);
  alarms = [
    ...(store.alarms?.alarms ?? []).map((a) => ({ ...a, worse: true })),
    ...(store.alarms?.better ?? []),
  ].sort((a, b) => b.first_after.run - a.first_after.run);
}

// The page of a large store is drawn with its last runs. Those before them stand behind this
// script, so that a browser can draw before it has read them.
async function readEarlier() {
  // A load that is stopped becomes ready as well, but never fires DOMContentLoaded.
  if (document.readyState === 'loading')
    await new Promise((done) =>
      document.addEventListener('readystatechange', done, { once: true }),
    );
  try {
    const text = document.getElementById('earlier')?.textContent;
    if (text === undefined) throw new Error('the page ends before them');
    const part = await unpacked(text);
    if (part.runs.length !== earlier)
      throw new Error(`${count(part.runs.length)} of them are there`);
    add(part);
    earlier = 0;
  } catch (error) {
    unread = error.message;
  }
}

// What is to be said of runs that are not there.
const ofEarlier = () =>
  earlier === 0
    ? ''
    : unread
      ? `; ${plural(earlier, 'earlier run')} cannot be read: ${unread}`
      : `; ${plural(earlier, 'earlier run')} ${earlier === 1 ? 'is' : 'are'} being read`;
// What stands in the place of a run that is not there.
const lacking = (id) =>
  earlier === 0
    ? `There is no run ${id}`
    : unread
      ? `Run ${id} is none of those that could be read`
      : `Reading run ${id}`;

// Times can be compared only for one machine, compiler and set of flags.
const machineName = (m) =>
  [m.processor ?? m.cpu, has(m.threads) && plural(m.threads, 'thread'), m.compiler, m.flags]
    .filter(Boolean)
    .join(', ') || 'unknown machine';
const unique = (values) =>
  [...new Set(values.filter(has))].sort((a, b) =>
    String(a).localeCompare(String(b), 'en', { numeric: true }),
  );
const date = (run) =>
  String(run.started ?? '')
    .replace('T', ' ')
    .replace(/:\d\dZ$/, '');
const short = (commit) => String(commit ?? '').slice(0, 12);

function median(values) {
  if (values.length === 0) return undefined;
  // An array of numbers sorts much faster than by a function; a run may have a thousand cases.
  const sorted = values.every((v) => typeof v === 'number')
      ? Float64Array.from(values).sort()
      : [...values].sort((a, b) => rank(a) - rank(b)),
    half = sorted.length >> 1;
  return sorted.length % 2 || typeof sorted[half] !== 'number'
    ? sorted[half]
    : (sorted[half - 1] + sorted[half]) / 2;
}
const largest = (values) => values.reduce((a, b) => (rank(b) > rank(a) ? b : a), values[0]);

// Many results share the names that a filter reads, because the names of a store repeat from run to
// run.
function nameFilter(filter) {
  if (!has(filter)) return () => true;
  const match = matcher(filter),
    known = new Map();
  return (name) => {
    let yes = known.get(name);
    if (yes === undefined) known.set(name, (yes = match(name)));
    return yes;
  };
}

// Pictures over time. A place on the axis is one run, or all runs of a commit.

function places(of, along) {
  if (along !== 'commits')
    return of.map((run) => ({
      runs: [run],
      // Many runs have the same date; their numbers differ.
      label: `#${run.id}\n${date(run)}`,
      title: `run ${run.id}, ${date(run)}, ${short(run.commit)}`,
    }));
  const by = new Map();
  for (const run of of) {
    if (!by.has(run.commit))
      by.set(run.commit, {
        runs: [],
        label: short(run.commit).slice(0, 8),
        title: `commit ${short(run.commit)}`,
      });
    by.get(run.commit).runs.push(run);
  }
  return [...by.values()];
}

const most = 12;

// Lines at the places where levels changed, with how many did for the worse or the better. They
// stand at the first run of the new level.
function changeLines(changes, at, used) {
  const counts = new Map();
  for (const a of changes) {
    const place = used.findIndex((i) => at[i].runs.some((r) => r.id === a.first_after.run));
    if (place < 0) continue;
    const n = counts.get(place) ?? { worse: 0, better: 0 };
    (n[a.worse ? 'worse' : 'better']++, counts.set(place, n));
  }
  return [...counts].map(([xAxis, { worse, better }]) => ({
    xAxis,
    lineStyle: { color: colour(worse ? 'bad' : 'good'), type: 'dashed', width: 1.5 },
    label: {
      formatter: [worse && `▲${count(worse)}`, better && `▼${count(better)}`]
        .filter(Boolean)
        .join(' '),
      position: 'insideEndTop',
      rotate: 0,
      color: colour(worse ? 'bad' : 'good'),
    },
  }));
}

// series: {name, values: by place, dashed}. Values are drawn through axis.place, and axis.show
// prints them. changes: the change points to mark.
function overTime({ title, note, at, series, axis, bound, changes = [], state = {} }) {
  const used = at.map((_, i) => i).filter((i) => series.some((s) => has(s.values[i])));
  if (used.length === 0) return null;
  const groups = [...new Set(series.map((s) => s.group ?? s.name))],
    drawn = series.filter((s) => groups.indexOf(s.group ?? s.name) < most);
  const hidden =
    groups.length > most
      ? ` ${groups.length} series: the first ${most} are drawn, the table has all; choose a candidate, a dtype or a machine.`
      : '';
  const open = (i) => go({ ...state, run: at[i].runs.at(-1).id });
  return figure({
    title,
    note: `${note}${hidden} A click opens the run.`,
    summary: `${plural(series.length, 'series', 'series')} over ${plural(used.length, 'place')}.`,
    height: used.length > 40 ? 390 : 340,
    onpick: (x) => {
      const i = used[Math.round(x)];
      if (i !== undefined) open(i);
    },
    option: () => {
      const y = axis.option(drawn.flatMap((s) => s.values));
      return {
        grid: { left: 66, right: bound ? 52 : 16, top: 58, bottom: used.length > 40 ? 96 : 52 },
        legend: {},
        tooltip: {
          trigger: 'axis',
          formatter: (ps) => {
            const i = used[ps[0].dataIndex];
            return tip(
              el('strong', {}, at[i].title),
              ...drawn
                .filter((s) => has(s.values[i]))
                .map((s) => `${s.name}: ${axis.show(s.values[i])}`),
            );
          },
        },
        xAxis: {
          type: 'category',
          data: used.map((i) => at[i].label),
          boundaryGap: true,
          axisLabel: { showMaxLabel: true, lineHeight: 15 },
        },
        yAxis: { ...y, axisLabel: y.axisLabel },
        dataZoom:
          used.length > 40
            ? [
                {
                  type: 'slider',
                  bottom: 8,
                  height: 22,
                  startValue: Math.max(0, used.length - 120),
                  borderColor: colour('dim'),
                  textStyle: { color: colour('dim') },
                },
              ]
            : undefined,
        series: drawn.map((s, k) => {
          const n = groups.indexOf(s.group ?? s.name);
          // The lines of one group share their entry in the legend.
          return {
            name: s.group ?? s.name,
            type: 'line',
            connectNulls: true,
            cursor: 'pointer',
            ...seriesLook(n),
            symbolSize: 7,
            showSymbol: used.length <= 120,
            lineStyle: { width: 2, type: s.dashed ? 'dashed' : 'solid' },
            data: used.map((i) => (has(s.values[i]) ? axis.place(s.values[i]) : null)),
            sampling: used.length > 400 ? 'lttb' : undefined,
            markLine: k === 0 ? markLines(bound, changeLines(changes, at, used)) : undefined,
          };
        }),
      };
    },
    table: () =>
      table(
        title,
        ['started', 'commit', 'run', 'series', [axis.name]],
        used.flatMap((i) =>
          series
            .filter((s) => has(s.values[i]))
            .map((s) => [
              date(at[i].runs.at(-1)),
              short(at[i].runs.at(-1).commit),
              el(
                'a',
                { href: link({ ...state, run: at[i].runs.at(-1).id }) },
                `${at[i].runs.at(-1).id}`,
              ),
              s.name,
              axis.show(s.values[i]),
            ]),
        ),
      ),
  });
}

function markLines(bound, lines) {
  const marks = boundLine();
  return { ...marks, data: [...(bound ? marks.data : []), ...lines] };
}

const ratios = {
  name: 'error / bound',
  place: level,
  show: real,
  option: (values) => ratioAxis(values, { fit: true }),
};
const linear = (name, show, more = {}) => ({
  name,
  place: (v) => v,
  show,
  option: () => ({
    type: 'value',
    name,
    nameTextStyle: { align: 'left' },
    axisLabel: { formatter: (v) => show(v) },
    ...more,
  }),
});

// Groups results by a key, place by place: key -> [values of place 0, values of place 1, ...].
function gather(at, keep, key, value) {
  const groups = new Map();
  at.forEach((place, i) => {
    for (const run of place.runs)
      for (const r of run.results) {
        if (!keep(r, run)) continue;
        const v = value(r);
        if (!has(v)) continue;
        const k = key(r, run);
        let of = groups.get(k);
        if (!of) groups.set(k, (of = at.map(() => [])));
        of[i].push(v);
      }
  });
  return groups;
}

// A legend names a machine by its processor, and in full only where the processor does not tell it
// from another machine.
const join = (...parts) => parts.filter(Boolean).join(' · ');
function machineNames(of) {
  const names = new Map(
    of.map((run) => [run.where, String(run.machine?.processor ?? run.machine?.cpu ?? run.where)]),
  );
  const short = [...names.values()];
  return (run) =>
    names.size < 2
      ? ''
      : short.filter((n) => n === names.get(run.where)).length > 1
        ? run.where
        : names.get(run.where);
}
// A store has a million results and few names of series, so a name is made once for a run.
function seriesName(machine) {
  const made = new Map();
  return (r, run) => {
    let of = made.get(run);
    if (!of) made.set(run, (of = new Map()));
    let name = of.get(r.dtype);
    if (name === undefined) of.set(r.dtype, (name = join(run.candidate, r.dtype, machine(run))));
    return name;
  };
}

function accuracy(view) {
  const at = places(
    view.runs.filter((r) => r.kind === 'check'),
    view.state.along,
  );
  const groups = gather(at, view.keep, seriesName(view.machine), (r) => r.worst_ratio);
  const series = [...groups].flatMap(([name, values]) => [
    {
      group: name,
      name: `${name}, worst`,
      values: values.map((v) => (v.length ? largest(v) : null)),
    },
    {
      group: name,
      name: `${name}, median`,
      dashed: true,
      values: values.map((v) => median(v) ?? null),
    },
  ]);
  return overTime({
    title: 'Accuracy',
    note: 'Worst (solid) and median (dashed) error / bound of the cases of a run; above the line an error is beyond its proved bound.',
    at,
    series,
    axis: ratios,
    bound: true,
    changes: view.changes.filter((a) => a.measure === 'accuracy'),
    state: view.state,
  });
}

// The measures of speed that can be shown: times of checks, and times and counters of benchmarks.
function measures(of) {
  const counters = new Set();
  let timed = false,
    checked = false;
  for (const run of of) {
    if (run.kind === 'check') checked ||= run.results.some((r) => typeof r.seconds === 'number');
    if (run.kind !== 'benchmark') continue;
    for (const r of run.results) {
      timed ||= typeof r.seconds === 'number';
      for (const [k, v] of Object.entries(r.counters ?? {}))
        if (typeof v === 'number') counters.add(k);
    }
  }
  // The fraction of the machine's limit comes first, because it says most on a shared machine. The
  // ends of intervals are no measure.
  const named = [...counters]
      .filter((c) => !/_(low|high)$/.test(c))
      .sort((a, b) => (b === 'fraction') - (a === 'fraction')),
    [best, ...others] = named[0] === 'fraction' ? named : [null, ...named];
  return [
    best && `benchmark: ${best}`,
    timed && 'benchmark: seconds',
    ...others.map((c) => `benchmark: ${c}`),
    checked && 'check: candidate seconds',
  ].filter(Boolean);
}

function speed(view) {
  const all = measures(view.runs);
  if (all.length === 0) return null;
  const measure = all.includes(view.state.measure) ? view.state.measure : all[0];
  const check = measure.startsWith('check'),
    counter = measure.endsWith('seconds') ? null : measure.slice('benchmark: '.length);
  const at = places(
    view.runs.filter((r) => r.kind === (check ? 'check' : 'benchmark')),
    view.state.along,
  );
  const value = (r) => {
    const v = counter === null ? r.seconds : r.counters?.[counter];
    return typeof v === 'number' ? v : null;
  };
  const one = (r, run) => join(r.name, run.candidate, view.machine(run));
  const chooser = el(
    'div',
    { class: 'controls' },
    el(
      'label',
      {},
      'Measure',
      el(
        'select',
        { name: 'measure', onchange: (e) => go({ ...address(), measure: e.target.value }) },
        all.map((m) => el('option', { value: m, selected: m === measure }, m)),
      ),
    ),
  );
  const show = counter === null ? seconds : real,
    changes = counter === null ? view.changes.filter((a) => a.measure === 'time') : [];
  const few = new Set();
  for (const run of at.flatMap((p) => p.runs))
    for (const r of run.results)
      if (few.size <= 8 && view.keep(r, run) && has(value(r))) few.add(one(r, run));
  if (few.size <= 8) {
    const series = [...gather(at, view.keep, one, value)].map(([name, values]) => ({
      name,
      values: values.map((v) => median(v) ?? null),
    }));
    return [
      chooser,
      overTime({
        title: `Speed: ${measure}`,
        note: check ? 'Time of one call of the candidate, by case.' : 'By benchmark.',
        at,
        series,
        axis: linear(counter ?? 'time', show, { min: 0 }),
        changes,
        state: view.state,
      }),
    ];
  }
  // With many names, each is shown relative to its own first value, and the picture has the
  // geometric mean of these. So a run with other cases does not make the line jump.
  const firsts = new Map(),
    group = seriesName(view.machine),
    groups = new Map();
  at.forEach((place, i) => {
    for (const run of place.runs) {
      const of = join(run.candidate, view.machine(run));
      if (!firsts.has(of)) firsts.set(of, new Map());
      const first = firsts.get(of);
      for (const r of run.results) {
        const v = view.keep(r, run) ? value(r) : null;
        if (!(v > 0)) continue;
        const before = first.get(r.name);
        if (before === undefined) first.set(r.name, v);
        const k = group(r, run);
        let sums = groups.get(k);
        if (!sums) groups.set(k, (sums = at.map(() => [0, 0])));
        sums[i][0] += Math.log(v / (before ?? v));
        sums[i][1]++;
      }
    }
  });
  const series = [...groups].map(([name, sums]) => ({
    name,
    values: sums.map(([s, n]) => (n ? Math.exp(s / n) : null)),
  }));
  return [
    chooser,
    overTime({
      title: `Speed: ${measure}`,
      note: `Relative to the first run of each ${check ? 'case' : 'benchmark'}, as geometric mean; 1 is as then${counter === null ? ', more is slower' : ''}. A filter that leaves 8 names or fewer shows each by itself.`,
      at,
      series,
      axis: linear('ratio to the first', real, { scale: true }),
      changes,
      state: view.state,
    }),
  ];
}

function faults(view) {
  const at = places(
    view.runs.filter((r) => r.kind === 'faults'),
    view.state.along,
  );
  const groups = gather(
    at,
    (r, run) => r.outcome !== 'equivalent' && view.keep(r, run),
    (r, run) => join(run.candidate, run.title, view.machine(run)),
    (r) => (r.outcome === 'killed' ? 1 : 0),
  );
  const series = [...groups].map(([name, values]) => ({
    name,
    values: values.map((v) => (v.length ? (100 * v.reduce((a, b) => a + b, 0)) / v.length : null)),
  }));
  return overTime({
    title: 'Planted faults killed',
    note: 'Of those that some input can show.',
    at,
    series,
    axis: linear('killed, %', (v) => `${real(v)} %`, { min: 0, max: 100 }),
    state: view.state,
  });
}

function fuzzing(view) {
  const of = view.runs.filter((r) => r.kind === 'fuzz' && r.results.some((x) => view.keep(x, r))),
    at = places(of, view.state.along);
  if (at.length === 0) return null;
  const targets = [
    ...gather(
      at,
      view.keep,
      (r) => r.name,
      (r) => r.counters?.executions ?? 0,
    ),
  ].map(([name, values]) => ({ name, values: values.map((v) => v.reduce((a, b) => a + b, 0)) }));
  const findings = at.map((p) =>
    p.runs.reduce(
      (n, run) =>
        n + run.results.filter((r) => view.keep(r, run) && r.outcome === 'finding').length,
      0,
    ),
  );
  const total = at.map((_, i) => targets.reduce((n, t) => n + t.values[i], 0));
  return figure({
    title: 'Fuzzing',
    note: 'Executions of each target; a cross marks a run with findings. A click opens the run.',
    summary: `${plural(
      findings.reduce((a, b) => a + b, 0),
      'finding',
    )}.`,
    height: 320,
    onpick: (x) =>
      at[Math.round(x)] && go({ ...view.state, run: at[Math.round(x)].runs.at(-1).id }),
    option: () => {
      return {
        grid: { left: 66, right: 16, top: 58, bottom: at.length > 40 ? 96 : 52 },
        legend: {},
        tooltip: {
          trigger: 'axis',
          formatter: (ps) => {
            const i = ps[0].dataIndex;
            return tip(
              el('strong', {}, at[i].title),
              ...targets.map((t) => `${t.name}: ${count(t.values[i])} executions`),
              plural(findings[i], 'finding'),
            );
          },
        },
        xAxis: { type: 'category', data: at.map((p) => p.label), axisLabel: { lineHeight: 15 } },
        yAxis: {
          type: 'value',
          name: 'executions',
          nameTextStyle: { align: 'left' },
          axisLabel: { formatter: (v) => count(v) },
        },
        dataZoom:
          at.length > 40
            ? [
                {
                  type: 'slider',
                  bottom: 8,
                  height: 22,
                  borderColor: colour('dim'),
                  textStyle: { color: colour('dim') },
                },
              ]
            : undefined,
        series: [
          ...targets.map((t, k) => ({
            name: t.name,
            type: 'bar',
            stack: 'all',
            barMaxWidth: 28,
            cursor: 'pointer',
            itemStyle: { ...seriesFill(k), borderColor: colour('bg') },
            data: t.values,
          })),
          {
            name: 'findings',
            type: 'scatter',
            symbol: 'path://M0,2 L2,0 L6,4 L10,0 L12,2 L8,6 L12,10 L10,12 L6,8 L2,12 L0,10 L4,6 Z',
            symbolSize: 13,
            symbolOffset: [0, -12],
            itemStyle: { color: colour('bad') },
            label: {
              show: true,
              position: 'right',
              color: colour('bad'),
              formatter: (p) => count(findings[p.dataIndex]),
            },
            data: findings.map((n, i) => (n ? total[i] : null)),
          },
        ],
      };
    },
    table: () =>
      table(
        'Fuzzing',
        [
          'started',
          'run',
          'target',
          ['executions'],
          ['per second'],
          ['coverage'],
          ['corpus'],
          'outcome',
        ],
        of.flatMap((run) =>
          run.results
            .filter((r) => view.keep(r, run))
            .map((r) => [
              date(run),
              el('a', { href: link({ ...view.state, run: run.id }) }, `${run.id}`),
              r.name,
              count(r.counters?.executions),
              count(Math.round(r.counters?.executions_per_second)),
              count(r.counters?.coverage),
              count(r.counters?.corpus),
              r.outcome,
            ]),
        ),
      ),
  });
}

// The result of each run in a word. It is computed once, because a store may have 200,000 results.
const sums = new WeakMap();
function sum(run) {
  if (sums.has(run)) return sums.get(run);
  const n = {};
  for (const r of run.results) n[r.outcome] = (n[r.outcome] ?? 0) + 1;
  const all = run.results.map((r) => r.worst_ratio).filter(has),
    time = run.results.reduce((s, r) => s + (typeof r.seconds === 'number' ? r.seconds : 0), 0);
  const worse = (n.fail ?? 0) + (n.error ?? 0) + (n.survived ?? 0) + (n.finding ?? 0);
  const words =
    run.kind === 'faults'
      ? [`${n.killed ?? 0} of ${(n.killed ?? 0) + (n.survived ?? 0)} killed`]
      : run.kind === 'benchmark'
        ? [plural(run.results.length, 'benchmark')]
        : run.kind === 'fuzz'
          ? [worse ? plural(worse, 'finding') : 'clean']
          : [
              worse
                ? `${count(worse)} of ${count(run.results.length)} failed`
                : `${count(n.pass ?? 0)} of ${count(run.results.length)} passed`,
            ];
  // As in a report, a case that neither failed nor passed does not count as good.
  const kind =
    run.kind === 'benchmark'
      ? ''
      : worse
        ? 'bad'
        : run.kind === 'check' && (n.pass ?? 0) < run.results.length
          ? 'open'
          : run.results.length === 0
            ? 'open'
            : 'good';
  const s = {
    worse,
    kind,
    words: words[0],
    worst: all.length ? largest(all) : undefined,
    median: median(all),
    time,
  };
  sums.set(run, s);
  return s;
}
const verdict = (run) => el('span', { class: sum(run).kind || null }, sum(run).words);

const filters = [
  'candidate',
  'dtype',
  'machine',
  'kind',
  'filter',
  'along',
  'measure',
  'sort',
  'changes',
];
const only = (state, names) =>
  Object.fromEntries(names.filter((n) => has(state[n])).map((n) => [n, state[n]]));

function controls(children) {
  const line = el('div', { class: 'controls' });
  line.append(...children);
  return line;
}

function overview(state) {
  const keepName = nameFilter(state.filter);
  const chosen = runs.filter(
    (r) =>
      (!has(state.candidate) || r.candidate === state.candidate) &&
      (!has(state.machine) || r.where === state.machine) &&
      (!has(state.kind) || r.kind === state.kind),
  );
  const keep = (r) => (!has(state.dtype) || r.dtype === state.dtype) && keepName(r.name);
  const view = {
    state: only(state, filters),
    runs: chosen,
    keep,
    machine: machineNames(chosen),
    changes: changesOf(chosen, has(state.dtype) || has(state.filter) ? keep : null),
  };
  const set = (change, options) => go({ ...only(address(), filters), ...change }, options);
  const rows = chosen.filter(
    (run) => !(has(state.dtype) || has(state.filter)) || run.results.some((r) => keep(r)),
  );
  const pictures = [accuracy(view), speed(view), faults(view), fuzzing(view)]
    .flat()
    .filter(Boolean);
  return [
    controls([
      select('Candidate', 'candidate', unique(runs.map((r) => r.candidate)), state.candidate, (v) =>
        set({ candidate: v }),
      ),
      select('Dtype', 'dtype', dtypes(), state.dtype, (v) => set({ dtype: v })),
      select('Machine', 'machine', unique(runs.map((r) => r.where)), state.machine, (v) =>
        set({ machine: v }),
      ),
      select('Kind', 'kind', unique(runs.map((r) => r.kind)), state.kind, (v) => set({ kind: v })),
      el(
        'label',
        {},
        'Along',
        el(
          'select',
          { name: 'along', onchange: (e) => set({ along: e.target.value }) },
          ['runs', 'commits'].map((v) =>
            el('option', { value: v === 'runs' ? '' : v, selected: v === state.along }, v),
          ),
        ),
      ),
      search('Filter by name', state.filter, (v) =>
        later(() => set({ filter: v }, { replace: true })),
      ),
    ]),
    el(
      'p',
      { role: 'status' },
      `${count(rows.length)} of ${plural(runs.length, 'run')}${ofEarlier()}`,
    ),
    runs.length === 0
      ? el('p', { class: 'empty' }, 'The store has no run yet.')
      : pictures.length === 0
        ? el('p', { class: 'empty' }, 'Nothing fits the filters.')
        : pictures,
    changeTable(view.changes, view.state),
    el('h2', {}, 'Runs'),
    sortable({
      label: 'Runs',
      rows: [...rows].reverse(),
      sort: state.sort,
      onsort: (s) => set({ sort: s }),
      limit: 100,
      empty: runs.length === 0 ? 'There is no run to list.' : 'No run fits the filters.',
      rowAttributes: (run) => ({
        class: 'row',
        onclick: (e) => {
          if (!e.target.closest('a') && getSelection().isCollapsed)
            go({ ...only(address(), filters), run: run.id, sort: '' });
        },
      }),
      columns: [
        {
          key: 'id',
          title: 'run',
          number: true,
          value: (r) => Number(r.id),
          cell: (r) =>
            el(
              'a',
              { href: link({ ...view.state, sort: '', run: r.id }), 'aria-label': `Run ${r.id}` },
              `${r.id}`,
            ),
        },
        { key: 'started', title: 'started', class: 'when', value: (r) => r.started, cell: date },
        { key: 'kind', title: 'kind', value: (r) => r.kind, cell: (r) => r.kind ?? '' },
        { key: 'title', title: 'suite', value: (r) => r.title, cell: (r) => r.title ?? '' },
        {
          key: 'candidate',
          title: 'candidate',
          value: (r) => r.candidate,
          cell: (r) => r.candidate ?? '',
        },
        {
          key: 'result',
          title: 'result',
          value: (r) => sum(r).worse,
          cell: verdict,
        },
        {
          key: 'worst',
          title: 'worst',
          number: true,
          value: (r) => rank(sum(r).worst),
          cell: (r) => ratioCell(sum(r).worst),
        },
        {
          key: 'median',
          title: 'median',
          number: true,
          value: (r) => rank(sum(r).median),
          cell: (r) => real(sum(r).median),
        },
        {
          key: 'time',
          title: 'seconds',
          number: true,
          value: (r) => sum(r).time,
          cell: (r) => seconds(sum(r).time || ''),
        },
        {
          key: 'commit',
          title: 'commit',
          value: (r) => r.commit,
          cell: (r) => el('code', { class: 'commit' }, short(r.commit)),
        },
        {
          key: 'machine',
          title: 'machine',
          class: 'machine',
          value: (r) => r.where,
          cell: (r) => r.where,
        },
      ],
    }),
  ];
}

// The change points of these runs. With a filter, those of the cases that it keeps.
function changesOf(of, keep) {
  if (alarms.length === 0) return [];
  const ids = new Set(of.map((run) => run.id)),
    names = keep && new Set();
  if (keep) for (const run of of) for (const r of run.results) if (keep(r)) names.add(r.name);
  return alarms.filter((a) => ids.has(a.first_after.run) && (!names || names.has(a.name)));
}

const measureWords = { accuracy: 'error / bound', evidence: 's / limit', time: 'time' };
function changeTable(changes, state) {
  if (changes.length === 0) return [];
  const run = ({ run: id, commit, started }) => [
    el('a', { href: link({ ...state, sort: '', run: id }), title: date({ started }) }, `${id}`),
    ' ',
    el('code', { class: 'commit' }, short(commit)),
  ];
  const levelText = (a, v) => (has(a.name) && a.measure === 'time' ? seconds(v) : real(v));
  const worse = changes.filter((a) => a.worse).length;
  return [
    el('h2', {}, 'Change points'),
    el(
      'p',
      { class: 'note' },
      `${plural(worse, 'change')} for the worse, ${count(changes.length - worse)} for the better; the newest first. The level of a suite is the mean of its cases, relative to its first run.`,
    ),
    sortable({
      label: 'Change points',
      rows: changes,
      sort: state.changes,
      onsort: (changed) => go({ ...address(), changes: changed }),
      limit: 20,
      empty: '',
      columns: [
        {
          key: 'change',
          title: 'change',
          number: true,
          value: (a) => a.ratio,
          cell: (a) =>
            el(
              'span',
              { class: a.worse ? 'bad' : 'good' },
              `${a.worse ? '▲' : '▼'} × ${real(a.ratio)}`,
            ),
        },
        {
          key: 'of',
          title: 'of',
          class: 'when',
          value: (a) => a.measure,
          cell: (a) => measureWords[a.measure] ?? a.measure,
        },
        {
          key: 'level',
          title: 'before → after',
          class: 'when',
          value: (a) => a.after,
          cell: (a) => `${levelText(a, a.before)} → ${levelText(a, a.after)}`,
        },
        {
          key: 'last',
          title: 'last run before',
          class: 'when',
          value: (a) => a.last_before.run,
          cell: (a) => run(a.last_before),
        },
        {
          key: 'first',
          title: 'first run after',
          class: 'when',
          value: (a) => a.first_after.run,
          cell: (a) => run(a.first_after),
        },
        {
          key: 'sure',
          title: 'found',
          class: 'when',
          value: (a) => (a.certain ? a.first_after.run : a.found.run),
          cell: (a) => (a.certain ? 'at once' : `in run ${a.found.run}`),
        },
        { key: 'by', title: 'candidate', value: (a) => a.candidate, cell: (a) => a.candidate },
        {
          key: 'case',
          title: 'suite or case',
          class: 'caseline',
          value: (a) => a.name ?? '',
          cell: (a) =>
            has(a.name)
              ? el(
                  'a',
                  { href: link({ ...state, sort: '', run: a.first_after.run, case: a.name }) },
                  el('code', { title: a.name }, a.name),
                )
              : `all of ${a.suite}`,
        },
      ],
    }),
  ];
}

let knownDtypes;
function dtypes() {
  if (!knownDtypes) {
    knownDtypes = new Set();
    for (const run of runs) for (const r of run.results) if (has(r.dtype)) knownDtypes.add(r.dtype);
  }
  return unique([...knownDtypes]);
}

const back = (state) =>
  el(
    'a',
    {
      class: 'back',
      href: link(
        only(
          state,
          filters.filter((f) => f !== 'sort'),
        ),
      ),
    },
    'All runs',
  );

function runView(state, run) {
  const outcomes = unique(run.results.map((r) => r.outcome)),
    match = nameFilter(state.find);
  const rows = run.results.filter(
    (r) =>
      (!has(state.outcome) || r.outcome === state.outcome) && match(`${r.name} ${r.reason ?? ''}`),
  );
  const set = (change, options) => go({ ...address(), ...change }, options);
  const some = (f) => run.results.some((r) => has(f(r)));
  const counters = unique(run.results.flatMap((r) => Object.keys(r.counters ?? {})));
  const at = runs.indexOf(run),
    same = runs.filter(
      (r) => r.kind === run.kind && r.candidate === run.candidate && r.title === run.title,
    ),
    mine = same.indexOf(run);
  const step = (r, words) => r && el('a', { href: link({ ...state, run: r.id }) }, words);
  return [
    el(
      'nav',
      { 'aria-label': 'Runs' },
      back(state),
      step(same[mine - 1], 'Previous of its kind'),
      step(same[mine + 1], 'Next of its kind'),
      step(runs[at - 1], 'Run before'),
      step(runs[at + 1], 'Run after'),
    ),
    el('h2', { tabindex: -1 }, `Run ${run.id}: ${run.kind} ${run.title ?? ''}`),
    el(
      'div',
      { class: `verdict ${sum(run).kind}` },
      el('p', { class: 'words' }, sum(run).words),
      el('p', {}, run.sentence ?? ''),
    ),
    el(
      'div',
      { class: 'cards' },
      el(
        'div',
        { class: 'card' },
        facts([
          ['candidate', run.candidate],
          ['started', date(run)],
          ['seed', has(run.seed) && String(run.seed)],
          ['commit', run.commit],
          ['worst error / bound', real(sum(run).worst)],
          ['median error / bound', real(sum(run).median)],
        ]),
      ),
      el(
        'div',
        { class: 'card' },
        facts(
          Object.entries(run.machine ?? {}).map(([k, v]) => [
            k,
            typeof v === 'object' ? JSON.stringify(v) : String(v),
          ]),
        ),
      ),
    ),
    controls(
      [
        search('Filter', state.find, (v) => later(() => set({ find: v }, { replace: true }))),
        outcomes.length > 0 &&
          select('Outcome', 'outcome', outcomes, state.outcome, (v) => set({ outcome: v })),
      ].filter(Boolean),
    ),
    el('p', { role: 'status' }, `${count(rows.length)} of ${plural(run.results.length, 'result')}`),
    sortable({
      label: 'Results',
      rows,
      sort: state.sort,
      onsort: (s) => set({ sort: s }),
      empty: run.results.length === 0 ? 'This run has no result.' : 'No result fits the filter.',
      columns: [
        outcomes.length > 0 && {
          key: 'outcome',
          title: 'outcome',
          value: (r) => r.outcome,
          cell: (r) => outcome(r.outcome),
        },
        some((r) => r.dtype) && {
          key: 'dtype',
          title: 'dtype',
          value: (r) => r.dtype,
          cell: (r) => r.dtype ?? '',
        },
        some((r) => r.worst_ratio) && {
          key: 'worst',
          title: 'worst',
          number: true,
          value: (r) => rank(r.worst_ratio),
          cell: (r) => ratioCell(r.worst_ratio),
        },
        some((r) => r.worst_output) && {
          key: 'output',
          title: 'in',
          value: (r) => r.worst_output,
          cell: (r) => r.worst_output ?? '',
        },
        some((r) => r.compared) && {
          key: 'compared',
          title: 'compared',
          number: true,
          value: (r) => r.compared ?? -1,
          cell: (r) => (has(r.compared) ? count(r.compared) : ''),
        },
        some((r) => r.bias) && {
          key: 'bias',
          title: 'bias',
          number: true,
          value: (r) => rank(r.bias),
          cell: (r) => real(r.bias),
        },
        some((r) => r.slope) && {
          key: 'slope',
          title: 'slope t',
          number: true,
          value: (r) => rank(r.slope),
          cell: (r) => real(r.slope),
        },
        some((r) => r.seconds) && {
          key: 'seconds',
          title: run.kind === 'check' ? 'candidate' : 'time',
          number: true,
          value: (r) => r.seconds ?? -1,
          cell: (r) => seconds(r.seconds),
        },
        some((r) => r.judge_seconds) && {
          key: 'judge',
          title: 'judge',
          number: true,
          value: (r) => r.judge_seconds ?? -1,
          cell: (r) => seconds(r.judge_seconds),
        },
        ...counters.map((c) => ({
          key: `counter ${c}`,
          title: c.replaceAll('_', ' '),
          number: run.results.every((r) => typeof (r.counters?.[c] ?? 0) === 'number'),
          value: (r) => r.counters?.[c] ?? '',
          cell: (r) => number(r.counters?.[c]),
        })),
        {
          key: 'name',
          title: run.kind === 'check' ? 'case' : 'name',
          class: 'caseline',
          value: (r) => r.name,
          cell: (r) => [
            el(
              'a',
              { href: link({ ...only(state, filters), sort: '', run: run.id, case: r.name }) },
              el('code', { title: r.name }, r.name),
            ),
            has(r.reason) && r.outcome !== 'pass' && el('div', {}, r.reason),
          ],
        },
      ].filter(Boolean),
    }),
  ];
}

const number = (v) =>
  Number.isInteger(v) ? count(v) : typeof v === 'object' ? JSON.stringify(v) : real(v, 4);

function caseView(state, run, name) {
  const history = [];
  for (const r of runs)
    for (const result of r.results) if (result.name === name) history.push({ run: r, result });
  const here = history.filter((h) => h.run === run).at(-1) ?? history.at(-1);
  const nav = el(
    'nav',
    { 'aria-label': 'Case' },
    back(state),
    run && el('a', { href: link({ ...state, case: '' }) }, `Run ${run.id}`),
  );
  // The run of the address may be one that is not read yet: no other stands for it.
  const unknown = has(state.run) && !run && earlier > 0;
  if (!here || unknown)
    return [
      nav,
      el(
        'h2',
        { tabindex: -1 },
        unknown
          ? lacking(state.run)
          : earlier > 0
            ? `None of the runs that are read has this case${ofEarlier()}`
            : 'No run of the store has this case',
      ),
      copyLine(name, 'case line'),
    ];
  const r = here.result,
    of = [...new Set(history.map((h) => h.run))],
    machine = machineNames(of),
    at = places(of, state.along);
  const group = (_, x) => join(x.candidate, machine(x));
  const lines = (value) =>
    [...gather(at, (x) => x.name === name, group, value)].map(([n, values]) => ({
      name: n,
      values: values.map((v) => v.at(-1) ?? null),
    }));
  const kept = { ...only(state, filters), sort: '', case: name };
  const changes = changesOf(of, (x) => x.name === name);
  const counters = unique(
    history.flatMap((h) =>
      Object.entries(h.result.counters ?? {})
        .filter(([, v]) => typeof v === 'number')
        .map(([k]) => k),
    ),
  );
  return [
    nav,
    el(
      'h2',
      { tabindex: -1 },
      here.run.kind === 'check'
        ? 'One case over the runs'
        : `One ${here.run.kind === 'faults' ? 'fault' : here.run.kind === 'fuzz' ? 'fuzzer' : 'benchmark'} over the runs`,
    ),
    el(
      'dl',
      { class: 'lines' },
      el('dt', {}, here.run.kind === 'check' ? 'Case' : 'Name'),
      el('dd', {}, copyLine(name, 'case line')),
      has(r.reproduce) && [
        el('dt', {}, `Reproduce, as of run ${here.run.id}`),
        el('dd', {}, copyLine(r.reproduce, 'command that reproduces it')),
      ],
    ),
    el(
      'p',
      {},
      `In run ${here.run.id}: `,
      has(r.outcome) && outcome(r.outcome),
      has(r.reason) && ` ${r.reason}`,
    ),
    overTime({
      title: 'Error / bound',
      note: 'Largest error / bound of any output.',
      at,
      series: lines((x) => x.worst_ratio),
      axis: ratios,
      bound: true,
      changes: changes.filter((a) => a.measure === 'accuracy'),
      state: kept,
    }),
    overTime({
      title: 'Time',
      note: 'Of one call or iteration.',
      at,
      series: lines((x) => (typeof x.seconds === 'number' ? x.seconds : null)),
      axis: linear('time', seconds, { min: 0 }),
      changes: changes.filter((a) => a.measure === 'time'),
      state: kept,
    }),
    counters.map((c) =>
      overTime({
        title: c.replaceAll('_', ' '),
        note: 'Counter.',
        at,
        series: lines((x) => (typeof x.counters?.[c] === 'number' ? x.counters[c] : null)),
        axis: linear(c, number),
        state: kept,
      }),
    ),
    changeTable(changes, only(state, filters)),
    el('h3', {}, 'Runs of it'),
    scroller(
      'Runs of it',
      table(
        null,
        [
          ['run'],
          'started',
          'candidate',
          'outcome',
          ['error / bound'],
          ['time'],
          ...counters.map((c) => [c]),
          'commit',
          'machine',
          'reason',
        ],
        history
          .map((h) => h)
          .reverse()
          .map(({ run: x, result }) => [
            el(
              'a',
              { href: link({ ...kept, run: x.id }), 'aria-current': x === run ? 'true' : null },
              `${x.id}`,
            ),
            el('span', { class: 'when' }, date(x)),
            x.candidate,
            has(result.outcome) ? outcome(result.outcome) : '',
            ratioCell(result.worst_ratio),
            seconds(result.seconds),
            ...counters.map((c) => number(result.counters?.[c])),
            el('code', { class: 'commit' }, short(x.commit)),
            x.where,
            result.outcome === 'pass' ? '' : (result.reason ?? ''),
          ]),
      ),
    ),
  ];
}

// While the user types into a filter, the page is drawn only when the typing pauses, because a
// large store takes a moment.
let timer, typed;
function later(work) {
  clearTimeout(timer);
  typed = work;
  timer = setTimeout(now, runs.length > 50 ? 250 : 60);
}
function now() {
  clearTimeout(timer);
  const work = typed;
  typed = undefined;
  work?.();
}

const scrolls = new Map();
let shownAt = null;
function show() {
  clearTimeout(timer);
  typed = undefined;
  const state = address(),
    run = byId.get(String(state.run)),
    hash = location.hash;
  const page = `${state.run ?? ''} ${state.case ?? ''}`;
  if (shownAt !== null) scrolls.set(shownAt, scrollY);
  const focus = document.activeElement,
    key = focus?.name || focus?.dataset?.sort,
    caret = focus?.selectionStart;
  const content = has(state.case)
    ? caseView(state, run, state.case)
    : run
      ? runView(state, run)
      : has(state.run)
        ? [
            el('nav', {}, back(state)),
            el('h2', { tabindex: -1 }, lacking(state.run)),
            el('p', {}, `The page has ${plural(runs.length, 'run')}${ofEarlier()}.`),
          ]
        : overview(state);
  main.replaceChildren(...content.flat(Infinity).filter(Boolean));
  // When a page is drawn again, the same control keeps the focus. Another page starts at its
  // heading.
  if (shownAt === page) {
    const again =
      key &&
      [...main.querySelectorAll('[name], [data-sort]')].find(
        (e) => e.name === key || e.dataset.sort === key,
      );
    again?.focus({ preventScroll: true });
    if (again?.type === 'search') again.setSelectionRange(caret, caret);
    scrollTo(0, scrolls.get(page) ?? 0);
  } else if (shownAt !== null) {
    main.querySelector('h2[tabindex]')?.focus({ preventScroll: true });
    scrollTo(0, page === ' ' ? (scrolls.get(page) ?? 0) : 0);
  }
  shownAt = page;
  document.title = run ? `Assay: run ${run.id}` : 'Assay: runs';
  return hash;
}

document.title = 'Assay: runs';
const when = el('p', { class: 'dim when' });
document
  .querySelector('header')
  .append(el('h1', {}, 'Assay: runs over time'), schemeButton(), when);
main.replaceChildren(el('p', { role: 'status' }, 'Reading the runs.'));
function tell() {
  when.textContent = `${plural(runs.length, 'run')}${has(generated) ? `, as of ${String(generated).replace('T', ' ')}` : ''}${ofEarlier()}`;
}
// The page is painted before a large store is read.
requestAnimationFrame(() =>
  setTimeout(async () => {
    read();
    tell();
    start(show);
    if (earlier === 0) return;
    // The last runs and their pictures are painted first.
    await new Promise((done) => requestAnimationFrame(() => setTimeout(done, 100)));
    await readEarlier();
    tell();
    now(); // what is being typed would be lost when the page is drawn again
    show();
  }),
);
