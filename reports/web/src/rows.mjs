// The results of a run. The program that fills the page writes them by columns, because texts and
// deterministic numbers repeat in run after run: `kinds` lists every combination of texts once, and
// `columns` every column. A run names its columns by their numbers. Results become objects when
// they are asked for, and their fields are read from the columns.
const texts = ['name', 'dtype', 'outcome', 'reason', 'reproduce', 'worst_output', 'compared'],
  numbers = ['worst_ratio', 'evidence', 'bias', 'slope', 'seconds', 'judge_seconds', 'counters'];

class Row {
  constructor(columns, index) {
    this.columns = columns;
    this.index = index;
  }
}
texts.forEach((name, k) =>
  Object.defineProperty(Row.prototype, name, {
    get() {
      return this.columns.kinds[this.index][k];
    },
  }),
);
for (const name of numbers)
  Object.defineProperty(Row.prototype, name, {
    get() {
      return this.columns[name]?.[this.index];
    },
  });

// The results of a run of the page's data, whether it has them as objects or by columns.
export function resultsOf(run, store) {
  if (!Number.isInteger(run.kinds)) return run.results ?? [];
  const columns = { kinds: store.columns[run.kinds].map((k) => store.kinds[k]) };
  for (const name of numbers)
    columns[name] = Number.isInteger(run[name]) ? store.columns[run[name]] : run[name];
  return columns.kinds.map((_, i) => new Row(columns, i));
}
