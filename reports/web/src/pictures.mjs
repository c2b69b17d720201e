// The pictures of one case: where the errors are, how they are distributed, and which pairs the
// mask keeps.
import {
  boundLine,
  colour,
  countAxis,
  countLevel,
  figure,
  ratioAxis,
  ratioBar,
  tip,
} from './chart.mjs';
import { beyond, count, el, has, plural, rank, real, table } from './page.mjs';

const inside = [
  [0.01, 'h0'],
  [0.03, 'h1'],
  [0.1, 'h2'],
  [0.3, 'h3'],
  [1, 'h4'],
];
const outside = [
  [10, 'f0'],
  [1000, 'f1'],
  [Infinity, 'f2'],
];
const shade = (r) =>
  typeof r !== 'number' ? 'fx' : [...inside, ...outside].find(([limit]) => r <= limit)[1];
const range = (first, step, end) =>
  Math.min(first + step, end) - first > 1
    ? `${first}–${Math.min(first + step, end) - 1}`
    : `${first}`;

function key(mark, text) {
  return el(
    'span',
    { class: 'key' },
    el('span', { class: `swatch ${mark}`, 'aria-hidden': 'true' }),
    text,
  );
}

export const mapLegend = () =>
  el(
    'p',
    { class: 'legend' },
    el('strong', {}, 'Largest error / bound in a cell:'),
    inside.map(([limit, name]) => key(name, `≤ ${limit}`)),
    el('strong', {}, 'outside, with a cross:'),
    key('f0 cross', '1–10'),
    key('f1 cross', '10–1000'),
    key('f2 cross', '> 1000'),
    key('fx cross', 'inf or nan'),
    key('none', 'not judged by a bound'),
  );

// The space around a grid of cells, and a size of the cells with which the grid fits.
function layout(width, columns, rows) {
  const left = 52,
    right = 12,
    top = 10,
    bottom = 44;
  const cell = Math.min((width - left - right) / columns, 18);
  const down = Math.min(Math.max(cell, Math.min(18, 120 / rows)), 460 / rows);
  return {
    left,
    top,
    width: Math.max(cell * columns, 14),
    height: Math.max(down * rows, 14),
    whole: Math.max(down * rows, 14) + top + bottom,
  };
}

// The marks of an axis: round steps, and the end, which says how many there are.
function marks(end, room) {
  const wanted = end / Math.max(1, room),
    size = 10 ** Math.floor(Math.log10(wanted));
  const step = Math.max(
    1,
    [1, 2, 5, 10].map((m) => m * size).find((m) => m >= wanted),
  );
  const at = [];
  for (let x = 0; x < end - step * 0.6; x += step) at.push(x);
  return {
    axisTick: { customValues: [...at, end] },
    axisLabel: { customValues: [...at, end], hideOverlap: true },
  };
}

function gridOption(width, columns, rows, xName, yName, xEnd, yEnd) {
  const at = layout(width, columns, rows);
  const axis = {
    type: 'value',
    min: 0,
    splitLine: { show: false },
    minInterval: 1,
    nameLocation: 'middle',
  };
  return {
    grid: { left: at.left, top: at.top, width: at.width, height: at.height },
    xAxis: { ...axis, ...marks(xEnd, at.width / 50), name: xName, nameGap: 26, max: xEnd },
    yAxis: {
      ...axis,
      ...marks(yEnd, at.height / 36),
      name: yName,
      nameGap: 38,
      max: yEnd,
      inverse: true,
    },
  };
}

// A rectangle from (x, y) to (x + w, y + h), in units of the data.
function corner(api, x, y, w, h) {
  const a = api.coord([x, y]),
    b = api.coord([x + w, y + h]);
  return { x: a[0], y: a[1], width: b[0] - a[0], height: b[1] - a[1] };
}

// A cell of a map: a box; with a stroke, struck through; with a cross, struck through twice.
function cellOf(r, fill, border, stroke, cross) {
  const small = Math.min(r.width, r.height);
  const box = {
    type: 'rect',
    shape: r,
    style: { fill, stroke: border, lineWidth: small > 6 ? 1 : 0 },
  };
  if (!stroke) return box;
  // In a small cell, a cross from corner to corner can still be told from a spot.
  const edge = small > 9 ? 0.25 : 0.08;
  const line = (x1, y1, x2, y2) => ({
    type: 'line',
    shape: { x1, y1, x2, y2 },
    style: { stroke, lineWidth: small > 9 ? 1.5 : 0.8 },
    silent: true,
  });
  const [x1, y1, x2, y2] = [
    r.x + r.width * edge,
    r.y + r.height * edge,
    r.x + r.width * (1 - edge),
    r.y + r.height * (1 - edge),
  ];
  const up = line(x1, y2, x2, y1);
  return { type: 'group', children: cross ? [box, line(x1, y1, x2, y2), up] : [box, up] };
}

export function ratioMap(map) {
  // An output with one column, like LSE, is drawn as a strip whose rows run to the right.
  const strip = map.columns === 1;
  const rowName = map.row_axis === 'key' ? 'key' : 'row';
  const items = map.cells.flatMap((cells, i) =>
    cells.map((ratio, j) => ({ ratio, row: i * map.row_step, column: j * map.column_step })),
  );
  const bad = items.filter((c) => beyond(c.ratio)).length;
  const title = `${map.output}, b=${map.b}, h=${map.h}`;
  const steps =
    map.row_step * map.column_step > 1
      ? ` A cell is ${plural(map.row_step, rowName)}${strip ? '' : ` × ${plural(map.column_step, 'column')}`}.`
      : '';
  const size = strip ? [map.cells.length, 1] : [map.cells[0]?.length ?? 1, map.cells.length || 1];
  return figure({
    title,
    className: 'map',
    note: `${plural(bad, 'cell')} of ${count(items.length)} beyond the bound.${steps}`,
    summary: `${bad} of ${items.length} cells are beyond the bound.`,
    height: (width) => layout(width, ...size).whole,
    option: (width) => {
      const colours = Object.fromEntries(
        ['h0', 'h1', 'h2', 'h3', 'h4', 'f0', 'f1', 'f2', 'fx', 'cross', 'crossx', 'dim', 'bg'].map(
          (n) => [n, colour(n)],
        ),
      );
      const base = strip
        ? gridOption(width, ...size, rowName, '', map.rows, 1)
        : gridOption(width, ...size, 'column', rowName, map.columns, map.rows);
      if (strip) base.yAxis.show = false;
      return {
        ...base,
        tooltip: {
          formatter: ({ dataIndex: i }) => {
            const c = items[i];
            return tip(
              `${rowName} ${range(c.row, map.row_step, map.rows)}${strip ? '' : `, column ${range(c.column, map.column_step, map.columns)}`}`,
              has(c.ratio)
                ? `error / bound ${real(c.ratio)}${beyond(c.ratio) ? ': outside' : ''}`
                : 'not judged by a bound',
            );
          },
        },
        series: [
          {
            type: 'custom',
            data: items.map((c) => (strip ? [c.row, 0] : [c.column, c.row])),
            renderItem: (p, api) => {
              const c = items[p.dataIndex];
              const h = Math.min(map.row_step, map.rows - c.row),
                w = Math.min(map.column_step, map.columns - c.column);
              const r = strip ? corner(api, c.row, 0, h, 1) : corner(api, c.column, c.row, w, h);
              if (!has(c.ratio)) return cellOf(r, colours.bg, colours.bg, colours.dim);
              const fill = colours[shade(c.ratio)];
              if (!beyond(c.ratio)) return cellOf(r, fill, colours.bg);
              const stroke = typeof c.ratio === 'number' ? colours.cross : colours.crossx;
              return cellOf(r, fill, colours.bg, stroke, true);
            },
          },
        ],
      };
    },
    table: () =>
      table(
        `${title}: largest error / bound`,
        [
          rowName,
          ...(map.cells[0] ?? []).map((_, j) => [
            strip
              ? 'error / bound'
              : `column ${range(j * map.column_step, map.column_step, map.columns)}`,
          ]),
        ],
        map.cells.map((cells, i) => [
          range(i * map.row_step, map.row_step, map.rows),
          ...cells.map((r) =>
            has(r) ? el('span', { class: beyond(r) && 'beyond' }, real(r)) : '–',
          ),
        ]),
      ),
  });
}

function bars(title, note, names, xName, ratios, nameHead) {
  return figure({
    title,
    note,
    className: 'small',
    summary: `${plural(ratios.filter(beyond).length, 'bar')} of ${ratios.length} beyond the bound.`,
    height: 220,
    option: () => ({
      grid: { left: 58, right: 50, top: 30, bottom: 46 },
      xAxis: { type: 'category', data: names, name: xName, nameLocation: 'middle', nameGap: 28 },
      yAxis: ratioAxis(ratios),
      tooltip: {
        formatter: ({ dataIndex: i }) =>
          tip(
            `${nameHead} ${names[i]}`,
            has(ratios[i]) ? `error / bound ${real(ratios[i])}` : 'not judged by a bound',
          ),
      },
      series: [{ type: 'bar', barMaxWidth: 26, data: ratios.map(ratioBar), markLine: boundLine() }],
    }),
    table: () =>
      table(
        title,
        [nameHead, ['largest error / bound']],
        names.map((n, i) => [n, real(ratios[i])]),
      ),
  });
}

export function headBars({ output, ratios }) {
  const all = ratios.flatMap((of, b) => of.map((ratio, h) => ({ name: `b${b} h${h}`, ratio })));
  return bars(
    `${output} by head`,
    'Largest error / bound of each head of each batch entry.',
    all.map((a) => a.name),
    'batch entry and head',
    all.map((a) => a.ratio),
    'head',
  );
}

export const tileBars = ({ tile, ratios }) =>
  bars(
    'O by tile of query rows',
    `Largest error / bound; a tile is ${plural(tile, 'row')}.`,
    ratios.map((_, i) => `${i}`),
    'tile',
    ratios,
    'tile',
  );

export function ulpBars({ output, edges, counts, above }) {
  const name = (i) => `${real(edges[i])} to ${i + 1 < edges.length ? real(edges[i + 1]) : ''}`;
  // The last count reaches to the last edge; everything above it has a bar of its own.
  const inner = counts.slice(0, edges.length - 1);
  const beyondLast = (above ?? 0) + counts.slice(edges.length - 1).reduce((a, b) => a + b, 0);
  const names = [...inner.map((_, i) => name(i)), `${real(edges.at(-1))} and more`],
    all = [...inner, beyondLast];
  return figure({
    title: `${output}: errors in ulps`,
    note: 'Elements by |error| in units in the last place of the output’s dtype. Logarithmic.',
    className: 'small',
    summary: `${plural(
      all.reduce((a, b) => a + b, 0),
      'element',
    )}.`,
    height: 240,
    option: () => ({
      grid: { left: 58, right: 14, top: 30, bottom: 46 },
      xAxis: {
        type: 'category',
        data: [...inner.map((_, i) => `${real(edges[i])}`), `≥ ${real(edges.at(-1))}`],
        name: '|error| from, in ulps',
        nameLocation: 'middle',
        nameGap: 28,
      },
      yAxis: countAxis('elements'),
      tooltip: {
        formatter: ({ dataIndex: i }) => tip(`${names[i]} ulps`, plural(all[i], 'element')),
      },
      series: [
        {
          type: 'bar',
          barCategoryGap: '8%',
          itemStyle: { color: colour('h3') },
          data: all.map(countLevel),
        },
      ],
    }),
    table: () =>
      table(
        `${output}: elements by |error|`,
        ['|error| in ulps', ['elements']],
        names.map((n, i) => [n, count(all[i])]),
      ),
  });
}

export function maskPicture(mask) {
  const columns = mask.cells[0]?.length ?? 1;
  // Equal neighbours in a row become one rectangle, because a mask consists mostly of long runs.
  const runs = mask.cells.flatMap((text, i) =>
    [...text.matchAll(/(.)\1*/gs)].map((m) => ({
      row: i,
      from: m.index,
      length: m[0].length,
      share: Number(m[1]) / 9,
    })),
  );
  const steps =
    mask.row_step * mask.key_step > 1
      ? ` A cell is ${plural(mask.row_step, 'row')} × ${plural(mask.key_step, 'key')}.`
      : '';
  const title = `Mask, b=${mask.b}, h=${mask.h}`;
  const share = (s) =>
    s === 0 ? 'hidden' : s === 1 ? 'visible' : `about ${Math.round(s * 100)} % visible`;
  return figure({
    title,
    className: 'map',
    note: `Which key each row sees.${steps}`,
    height: (width) => layout(width, columns, mask.cells.length || 1).whole,
    legend: el(
      'p',
      { class: 'legend' },
      key('m0', 'hidden'),
      key('m5', 'some pairs of the cell'),
      key('m9', 'visible'),
    ),
    option: (width) => {
      const from = colour('m0'),
        to = colour('m9'),
        mix = (s) => blend(from, to, s);
      return {
        ...gridOption(width, columns, mask.cells.length || 1, 'key', 'row', mask.keys, mask.rows),
        tooltip: {
          formatter: ({ dataIndex: i }) => {
            const r = runs[i];
            return tip(
              `row ${range(r.row * mask.row_step, mask.row_step, mask.rows)}, keys ${range(r.from * mask.key_step, r.length * mask.key_step, mask.keys)}`,
              share(r.share),
            );
          },
        },
        series: [
          {
            type: 'custom',
            data: runs.map((r) => [r.from, r.row]),
            renderItem: (p, api) => {
              const r = runs[p.dataIndex],
                x = r.from * mask.key_step,
                y = r.row * mask.row_step;
              const shape = corner(
                api,
                x,
                y,
                Math.min(r.length * mask.key_step, mask.keys - x),
                Math.min(mask.row_step, mask.rows - y),
              );
              return {
                type: 'rect',
                shape,
                style: { fill: mix(r.share), stroke: mix(r.share), lineWidth: 0.5 },
              };
            },
          },
        ],
      };
    },
    table: () =>
      table(
        `${title}: visible keys`,
        ['rows', 'keys', 'visible'],
        runs
          .filter((r) => r.share > 0)
          .map((r) => [
            range(r.row * mask.row_step, mask.row_step, mask.rows),
            range(r.from * mask.key_step, r.length * mask.key_step, mask.keys),
            share(r.share),
          ]),
      ),
  });
}

// What a weight is, of which a key lacks a share.
const lacking = (x) =>
  !has(x)
    ? 'no few weights explain this row'
    : x === 0
      ? 'as it should be'
      : x > 0
        ? `${x === 1 ? 'missing' : `${real(x)} of it missing`}`
        : x === -1
          ? 'twice, or there although it is hidden'
          : `${real(1 - x)} times as large, or ${real(-x)} of it there although it is hidden`;
const lackMark = (x) => (x === 0 ? 'h0' : x > 0.5 ? 'f2' : x > 0 ? 'f0' : x > -0.5 ? 's2' : 's4');

export function weightMap(weights) {
  const cells = weights.cells.flatMap((row, i) =>
    row.map((share, k) => ({ share, row: i * weights.row_step, key: k * weights.key_step })),
  );
  const columns = weights.cells[0]?.length ?? 1;
  const off = cells.filter((c) => has(c.share) && c.share !== 0);
  const untold = weights.cells.filter((row) => !row.some(has)).length;
  const title = `Weights, b=${weights.b}, h=${weights.h}`;
  const steps =
    weights.row_step * weights.key_step > 1
      ? ` A cell is one of ${plural(weights.row_step, 'row')} × ${plural(weights.key_step, 'key')}; it shows the weight that is furthest off.`
      : '';
  const place = (c) =>
    `row ${range(c.row, weights.row_step, weights.rows)}, key ${range(c.key, weights.key_step, weights.keys)}`;
  return figure({
    title,
    className: 'map',
    note: `Which weights of P the output lacks or has twice, estimated from its errors.${steps}${untold > 0 ? ` No few weights explain ${plural(untold, 'row')}.` : ''}`,
    summary: `${off.length} of ${cells.length} cells have a weight that is off.`,
    height: (width) => layout(width, columns, weights.cells.length || 1).whole,
    legend: el(
      'p',
      { class: 'legend' },
      key('h0', 'as it should be'),
      key('f2 cross', 'missing'),
      key('f0 cross', 'less than half of it missing'),
      key('s4 cross', 'twice, or there although hidden'),
      key('s2 cross', 'too large by less than half'),
      key('none', 'not explained by weights'),
    ),
    option: (width) => {
      const colours = Object.fromEntries(
        ['h0', 'f2', 'f0', 's2', 's4', 'cross', 'dim', 'bg'].map((n) => [n, colour(n)]),
      );
      return {
        ...gridOption(
          width,
          columns,
          weights.cells.length || 1,
          'key',
          'row',
          weights.keys,
          weights.rows,
        ),
        tooltip: { formatter: ({ dataIndex: i }) => tip(place(cells[i]), lacking(cells[i].share)) },
        series: [
          {
            type: 'custom',
            data: cells.map((c) => [c.key, c.row]),
            renderItem: (p, api) => {
              const c = cells[p.dataIndex];
              const r = corner(
                api,
                c.key,
                c.row,
                Math.min(weights.key_step, weights.keys - c.key),
                Math.min(weights.row_step, weights.rows - c.row),
              );
              if (!has(c.share)) return cellOf(r, colours.bg, colours.bg, colours.dim);
              const fill = colours[lackMark(c.share)];
              if (c.share === 0) return cellOf(r, fill, colours.bg);
              return cellOf(r, fill, colours.bg, colours.cross, true);
            },
          },
        ],
      };
    },
    table: () =>
      table(
        `${title}: weights that are off`,
        ['row', 'key', 'weight'],
        off.map((c) => [
          range(c.row, weights.row_step, weights.rows),
          range(c.key, weights.key_step, weights.keys),
          lacking(c.share),
        ]),
      ),
  });
}

function blend(a, b, share) {
  const numbers = (c) => c.match(/[\d.]+/g).map(Number);
  const x = numbers(a),
    y = numbers(b);
  return `rgb(${[0, 1, 2].map((i) => Math.round(x[i] + (y[i] - x[i]) * share)).join(',')})`;
}

// All pictures of a result.
export function pictures(r) {
  const maps = r.maps ?? [];
  const figures = [
    maps.map(ratioMap),
    r.weights && weightMap(r.weights),
    (r.heads ?? []).map(headBars),
    r.tiles?.ratios.length > 0 && tileBars(r.tiles),
    (r.ulps ?? []).map(ulpBars),
    (r.mask ?? []).map(maskPicture),
  ]
    .flat()
    .filter(Boolean);
  return [
    maps.length > 0 && mapLegend(),
    figures.length > 0 && el('div', { class: 'figures' }, figures),
  ];
}

export const worstRatio = (r) => {
  let worst, output;
  for (const [name, w] of Object.entries(r.worst ?? {}))
    if (output === undefined || rank(w.ratio) > rank(worst)) ((worst = w.ratio), (output = name));
  return { ratio: worst, output };
};
