-- A store as the program of schema 1 wrote it, dumped.
PRAGMA application_id = 1095979865;
PRAGMA user_version = 1;
BEGIN TRANSACTION;
CREATE TABLE run(
  id INTEGER PRIMARY KEY,
  kind TEXT NOT NULL,       -- check, faults, fuzz or benchmark
  started TEXT NOT NULL,    -- UTC
  title TEXT NOT NULL,
  candidate TEXT NOT NULL,
  seed INTEGER NOT NULL,
  commit_id TEXT NOT NULL,
  machine TEXT NOT NULL,    -- JSON: processor, threads, compiler, flags
  sentence TEXT NOT NULL);
INSERT INTO run VALUES(1,'check','2026-11-26T17:53:26Z','cases','host',1,'73ebb03c571a','{"assay":"0.1.0","commit":"73ebb03c571a","compiler":"12.2.0","cpu":"a processor","flags":"Release","memory MiB":24104,"simd target":"AVX3","simd targets":"AVX3, AVX2, SSE4, SSSE3, SCALAR","threads":2}','1 cases: 1 passed, 0 failed; 90 elements compared; seed 1; 0.0 s');
INSERT INTO run VALUES(2,'check','2026-11-26T17:53:26Z','cases','fault:causal-off-by-one',1,'73ebb03c571a','{"assay":"0.1.0","commit":"73ebb03c571a","compiler":"12.2.0","cpu":"a processor","flags":"Release","memory MiB":24104,"simd target":"AVX3","simd targets":"AVX3, AVX2, SSE4, SSSE3, SCALAR","threads":2}','1 cases: 0 passed, 1 failed; 45 elements compared; seed 1; 0.0 s');
CREATE TABLE result(
  run INTEGER NOT NULL REFERENCES run(id),
  number INTEGER NOT NULL,
  name TEXT NOT NULL,       -- the case line, or the benchmark
  dtype TEXT,
  outcome TEXT,
  reason TEXT,
  reproduce TEXT,
  worst_output TEXT,
  worst_ratio REAL,         -- largest error/bound of any output, on a pass too
  bias REAL, slope REAL,
  seconds REAL,             -- of the candidate, or of an iteration
  judge_seconds REAL,
  counters TEXT,            -- JSON, of a benchmark
  PRIMARY KEY(run, number));
INSERT INTO result VALUES(1,0,'attention b=1 h=2/1 l=5x7 d=8 dtype=bf16 causal','bf16','pass','every element is inside its bound','assay check --candidate host --case ''attention b=1 h=2/1 l=5x7 d=8 dtype=bf16 causal''','O',0.99463570564201086998,0.053064306656730578226,1.5011886634295525944,9.7848000000000002352e-05,0.00031075900000000002436,NULL);
INSERT INTO result VALUES(2,0,'attention b=1 h=1 l=5 d=8 dtype=f32 causal','f32','fail','LSE is outside its bound: LSE[b=0, h=0, row=0] = 0.0809723213, exact -2.01450345, bound 9.81e-07','assay check --candidate fault:causal-off-by-one --case ''attention b=1 h=1 l=5 d=8 dtype=f32 causal''','O',22591089.67965618521,0.019024549113171553699,0.0,0.00015016800000000000286,0.00041720000000000000356,NULL);
CREATE INDEX result_name ON result(name);
COMMIT;
