// What both pages share: elements, numbers, the address, tables, the copy button and the colour
// scheme. A text of the data only becomes a text node or the value of an attribute, never markup.

export function el(tag, attributes, ...children) {
  const e = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith('on')) e.addEventListener(name.slice(2), value);
    else e.setAttribute(name, value === true ? '' : value);
  }
  for (const child of children.flat(Infinity))
    if (child !== undefined && child !== null && child !== false) e.append(child);
  return e;
}

export const data = () => JSON.parse(document.getElementById('data').textContent);

// Data that are deflated, in base64.
export async function unpacked(text) {
  const codes = atob(text),
    bytes = new Uint8Array(codes.length);
  for (let i = 0; i < codes.length; ++i) bytes[i] = codes.charCodeAt(i);
  const json = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate'));
  return new Response(json).json();
}

// Numbers. JSON cannot hold some numbers; they are the texts "nan", "inf" and "-inf".

export const has = (x) => x !== undefined && x !== null && x !== '';

export function real(x, digits = 3) {
  if (!has(x)) return '';
  if (typeof x !== 'number') return String(x);
  if (x === 0) return Object.is(x, -0) ? '-0' : '0';
  const size = Math.abs(x);
  const text =
    size < 1e-4 || size >= 10 ** Math.max(digits, 5)
      ? x.toExponential(digits - 1)
      : x.toPrecision(digits);
  // A number close to a bound must not be printed as the bound.
  if (Number(text) === 1 && x !== 1 && digits < 9) return real(x, digits + 1);
  if (/e/.test(text)) return text.replace(/\.?0+e/, 'e');
  return /\./.test(text) ? text.replace(/\.?0+$/, '') : text;
}

export const exact = (x) => real(x, 9);
// The formats of the browser take longer to load than a page takes to draw, and most counts are
// small.
export const count = (x) =>
  typeof x !== 'number'
    ? has(x)
      ? String(x)
      : ''
    : Number.isInteger(x) && Math.abs(x) < 1000
      ? String(x)
      : x.toLocaleString('en-US');
export const percent = (part, whole) =>
  whole ? `${(Math.floor((1000 * part) / whole) / 10).toFixed(1)} %` : '';

export function seconds(s) {
  if (!has(s)) return '';
  if (typeof s !== 'number' || !(s > 0)) return `${s} s`;
  for (const [unit, size] of [
    ['s', 1],
    ['ms', 1e-3],
    ['µs', 1e-6],
    ['ns', 1e-9],
  ])
    if (s >= size || unit === 'ns') return `${real(s / size)} ${unit}`;
}

// Turns a ratio into a number for sorting and comparing: a missing ratio is below 0, and NaN is
// above infinity.
export function rank(x) {
  if (!has(x)) return -1;
  if (typeof x === 'number') return x;
  return x === 'inf' ? Infinity : x === '-inf' ? -Infinity : Number.POSITIVE_INFINITY;
}
export const beyond = (ratio) => has(ratio) && !(typeof ratio === 'number' && ratio <= 1);

export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

// The address. Everything about a page that is worth a link stands behind the #.

export const address = () =>
  Object.fromEntries(new URLSearchParams(location.hash.slice(1).replace(/\+/g, '%2B')));
export const link = (state) =>
  '#' +
  Object.entries(state)
    .filter(([, v]) => has(v))
    .map(([k, v]) => `${encodeURIComponent(k)}=${encodeURIComponent(v)}`)
    .join('&');

let route = () => {};
export function start(show) {
  route = show;
  addEventListener('hashchange', route);
  route();
}
// Setting location.hash to nothing would scroll to the top, so history is used.
export function go(state, { replace = false } = {}) {
  if (link(state) === (location.hash || '#')) return;
  try {
    history[replace ? 'replaceState' : 'pushState'](null, '', link(state));
    route();
  } catch {
    location.hash = link(state);
  }
}

// Every word must be found, in any order, so a filter is quick to type.
export function matcher(filter) {
  const words = (filter ?? '').toLowerCase().split(/\s+/).filter(Boolean);
  return (text) =>
    words.length === 0 || ((t) => words.every((w) => t.includes(w)))(text.toLowerCase());
}

// A text with a button that copies it.

export function copyLine(text, label) {
  const code = el('code', { tabindex: 0, 'aria-label': label }, text);
  const button = el(
    'button',
    { type: 'button', class: 'copy', 'aria-label': `Copy ${label}`, onclick: copy },
    'Copy',
  );
  const said = el('span', { class: 'said', role: 'status' });
  async function copy() {
    let done = false;
    try {
      await navigator.clipboard.writeText(text);
      done = true;
    } catch {
      // If copying is not allowed, or there is no clipboard here, the text is selected, so that the
      // user can copy it.
      const range = document.createRange();
      range.selectNodeContents(code);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      try {
        done = document.execCommand('copy');
      } catch {
        /* stays selected */
      }
    }
    said.textContent = done ? 'copied' : 'selected: press Ctrl+C';
    setTimeout(() => {
      said.textContent = '';
    }, 4000);
  }
  return el('div', { class: 'line' }, code, button, said);
}

// Tables.

export const scroller = (label, ...children) =>
  el('div', { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': label }, children);

// head: titles, or [title, 'n'] for numbers, which are aligned to the right. rows: arrays of texts
// or elements.
export function table(caption, head, rows, { numbers = head.map((h) => Array.isArray(h)) } = {}) {
  return el(
    'table',
    {},
    caption && el('caption', {}, caption),
    el(
      'thead',
      {},
      el(
        'tr',
        {},
        head.map((h, i) =>
          el('th', { scope: 'col', class: numbers[i] && 'n' }, Array.isArray(h) ? h[0] : h),
        ),
      ),
    ),
    el(
      'tbody',
      {},
      rows.map((r) =>
        el(
          'tr',
          {},
          r.map((c, i) => el('td', { class: numbers[i] && 'n' }, c)),
        ),
      ),
    ),
  );
}

export const facts = (pairs) =>
  el(
    'dl',
    {},
    pairs
      .filter(([, v]) => has(v) && v !== false)
      .map(([name, value]) => el('div', {}, el('dt', {}, name), el('dd', {}, value))),
  );

// Columns are {key, title, number, value(row) to sort by, cell(row)}. The owner's address holds the
// order: 'key' or '-key'. A long table starts with as many rows as can be read well; the rest is
// shown when it is asked for.
export function sortable({
  label,
  columns,
  rows,
  sort,
  onsort,
  empty,
  limit = 300,
  rowAttributes = () => ({}),
}) {
  if (rows.length === 0) return el('p', { class: 'empty' }, empty);
  const descending = sort?.startsWith('-');
  const by = columns.find((c) => c.key === sort?.replace(/^-/, ''));
  const sorted = [...rows];
  if (by) {
    const compare = (a, b) => {
      const x = by.value(a),
        y = by.value(b);
      return typeof x === 'number' && typeof y === 'number'
        ? x === y
          ? 0
          : x - y
        : String(x ?? '').localeCompare(String(y ?? ''), 'en', { numeric: true });
    };
    sorted.sort((a, b) => (descending ? compare(b, a) : compare(a, b)));
  }
  const head = columns.map((c) => {
    const state = by === c ? (descending ? 'descending' : 'ascending') : 'none';
    // A column of numbers is first sorted with the largest on top.
    const next = by !== c ? (c.number ? `-${c.key}` : c.key) : descending ? c.key : `-${c.key}`;
    return el(
      'th',
      { scope: 'col', class: c.number && 'n', 'aria-sort': state },
      el(
        'button',
        { type: 'button', 'data-sort': c.key, onclick: () => onsort(next) },
        c.title,
        el(
          'span',
          { 'aria-hidden': 'true', class: 'arrow' },
          { none: '↕', ascending: '↑', descending: '↓' }[state],
        ),
      ),
    );
  });
  const body = el('tbody');
  const more = el('button', { type: 'button', class: 'more', onclick: () => add(sorted.length) });
  let shown = 0;
  function add(until) {
    const some = document.createDocumentFragment();
    for (; shown < Math.min(until, sorted.length); shown++)
      some.append(
        el(
          'tr',
          rowAttributes(sorted[shown]),
          columns.map((c) =>
            el(
              'td',
              { class: [c.number && 'n', c.class].filter(Boolean).join(' ') || null },
              c.cell(sorted[shown]),
            ),
          ),
        ),
      );
    body.append(some);
    more.hidden = shown === sorted.length;
    more.textContent = `Show all ${count(sorted.length)} rows`;
  }
  add(limit);
  return el(
    'div',
    {},
    scroller(label, el('table', { class: 'sortable' }, el('thead', {}, el('tr', {}, head)), body)),
    more,
  );
}

// The share of the bound that the largest error takes, up to the bound itself. An error beyond the
// bound is a full bar with another pattern.
export function ratioCell(ratio) {
  if (!has(ratio)) return '';
  const bad = beyond(ratio);
  return el(
    'span',
    { class: bad ? 'ratio beyond' : 'ratio' },
    real(ratio),
    el(
      'span',
      { class: 'bar', 'aria-hidden': 'true' },
      el('span', {
        style: `width:${bad ? 100 : Math.max(100 * rank(ratio), rank(ratio) > 0 ? 2 : 0)}%`,
      }),
    ),
  );
}

export const outcome = (word) =>
  el('span', { class: `outcome is-${/^[a-z]+$/.test(word ?? '') ? word : 'other'}` }, word ?? '');

// Controls.

export function select(label, name, values, chosen, onchange) {
  const known = values.includes(chosen) || !has(chosen) ? values : [chosen, ...values];
  return el(
    'label',
    {},
    label,
    el(
      'select',
      { name, onchange: (e) => onchange(e.target.value) },
      el('option', { value: '' }, 'all'),
      known.map((v) => el('option', { value: v, selected: v === chosen }, v)),
    ),
  );
}

export const search = (label, value, oninput) =>
  el(
    'label',
    { class: 'grow' },
    label,
    el('input', {
      type: 'search',
      name: 'filter',
      value: value ?? '',
      spellcheck: 'false',
      autocomplete: 'off',
      oninput: (e) => oninput(e.target.value),
    }),
  );

// The scheme follows the system until the reader chooses; the choice is kept if the browser allows
// it.
export function schemeButton() {
  const schemes = ['auto', 'light', 'dark'];
  let chosen = 'auto';
  try {
    chosen = localStorage.getItem('assay-scheme') ?? 'auto';
  } catch {
    /* no storage here */
  }
  if (!schemes.includes(chosen)) chosen = 'auto';
  const button = el('button', {
    type: 'button',
    class: 'scheme',
    onclick: () => {
      chosen = schemes[(schemes.indexOf(chosen) + 1) % schemes.length];
      try {
        localStorage.setItem('assay-scheme', chosen);
      } catch {
        /* only for this page, then */
      }
      apply();
    },
  });
  function apply() {
    if (chosen === 'auto') document.documentElement.removeAttribute('data-scheme');
    else document.documentElement.setAttribute('data-scheme', chosen);
    button.textContent = `Colours: ${chosen}`;
    dispatchEvent(new Event('schemechange'));
  }
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () =>
    dispatchEvent(new Event('schemechange')),
  );
  apply();
  return button;
}
