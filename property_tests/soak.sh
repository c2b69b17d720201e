#!/usr/bin/env bash
# A long run of `assay check --time` with a store. In the first third of the time one process runs,
# whose memory is watched. After that, processes are killed with -9 at random, about every half
# minute (more often if the time is short). At the end: every run that was told is in the store, the store is whole, nothing of a
# killed process is left, and the files stayed within their bounds.
#   soak.sh ASSAY [SECONDS [SEED]]
set -euo pipefail
assay=$(realpath "$1") seconds=${2:-3600} seed=${3:-$(date +%s)}
command -v python3 >/dev/null || { echo "python3 is not installed"; exit 77; }
work=$(mktemp -d "${TMPDIR:-/tmp}/assay-soak.XXXXXX")
process=
finish() {
  [ -z "$process" ] || kill -9 "$process" 2>/dev/null || true
  rm -rf "$work"
}
trap finish EXIT
mkdir "$work/tmp"
export TMPDIR=$work/tmp
cd "$work"
RANDOM=$seed
# A long run leaves the machine to others. A short one would hardly run beside them.
polite=() && [ "$seconds" -lt 300 ] || polite=(nice -n 10)
say() { printf '%6d s  %s\n' $SECONDS "$*"; }
die() { say "$*" >&2; exit 1; }
say "$seconds s, seed $seed"

# start SECONDS SEED: one process, which tells its end in out.txt.
start() {
  : >out.txt  # a kill may come before the process has done that
  "${polite[@]}" "$assay" check --suite tiny --jobs 1 --no-shrink --time "$1" --seed "$2" --store runs.db >out.txt 2>err.txt &
  process=$!
}
# memory_of PROCESS: what it holds of its own, in KiB, without the pages of files, which other processes hold as well.
memory_of() { awk '/^RssAnon/ { print $2 }' "/proc/$1/status" 2>/dev/null || true; }
# The processes that run in this folder, apart from this one.
others() {
  local p
  for p in /proc/[0-9]*; do
    [ "$(readlink "$p/cwd" 2>/dev/null)" != "$work" ] || [ "${p#/proc/}" = $$ ] || [ "${p#/proc/}" = "$BASHPID" ] || echo "${p#/proc/}"
  done
}
largest_wal=0
watch_disk() {
  local bytes
  bytes=$(stat -c %s runs.db-wal 2>/dev/null || echo 0)
  [ "$bytes" -le "$largest_wal" ] || largest_wal=$bytes
}

# ---- Memory -------------------------------------------------------------------------------------
: >memory.txt
start $((seconds / 3)) 1
while kill -0 $process 2>/dev/null; do
  worker=$(pgrep -P $process | head -n 1 || true)
  echo "$SECONDS $(memory_of $process) $(memory_of "${worker:-0}")" >>memory.txt
  # A worker lives for one round of the suite, a fraction of a second. Times at random see it at every age.
  sleep $((seconds < 300 ? 0 : 1)).$((RANDOM % 250 + 100))
done
wait $process || die "the process that was not killed failed: $(tail -n 1 err.txt)"
tail -n 2 out.txt
cases=$(sed -n 's/^\([0-9]*\) cases: .*/\1/p' out.txt)
told=(1)
python3 - "$cases" <<'PY' || die "memory grows"
import sys
cases = int(sys.argv[1])
rows = [list(map(int, line.split())) for line in open("memory.txt") if len(line.split()) == 3]
# The first tenth fills caches. A third of the rest at its begin and a third at its end are compared.
rows = rows[len(rows) // 10 :]
third = len(rows) // 3
if third < 3:
    sys.exit("too few samples of memory")
median = lambda part, column: sorted(row[column] for row in part)[len(part) // 2]
largest = lambda part: max(row[2] for row in part)
begin, end = rows[:third], rows[-third:]
grown = median(end, 1) - median(begin, 1)
kept = [min(10000, share * cases) for share in (0.25, 0.85)]  # at the two medians
print(f"memory over {rows[-1][0] - rows[0][0]} s: the command {median(begin, 1)} to {median(end, 1)} KiB, {kept[0]:.0f} to {kept[1]:.0f} results of {cases}; "
      f"a worker at most {largest(begin)} to {largest(end)} KiB, in {len(rows)} samples")
# The command keeps the first 10,000 results that passed. A worker keeps nothing from one case to the next, and needs what its largest case does:
# the largest of many samples is compared, because a median says at which age workers were met.
# Where no more results are kept, what waits for the store comes and goes.
allowed = max(20000 * (kept[1] - kept[0]), 4 << 20 if kept[1] == 10000 else 0)
sys.exit(grown * 1024 > allowed or largest(end) > largest(begin) + 4096 or largest(end) > 32768)
PY

# ---- Kills --------------------------------------------------------------------------------------
every=$((seconds < 300 ? seconds / 5 : 60))  # the longest time between two kills
killed=0 ended=1 next=$((SECONDS + RANDOM % every))
while [ $SECONDS -lt "$seconds" ]; do
  start $((RANDOM % (every / 3 + 1) + 1)) $RANDOM
  while kill -0 $process 2>/dev/null && [ $SECONDS -lt $next ]; do
    watch_disk
    sleep 0.1
  done
  if kill -9 $process 2>/dev/null; then next=$((SECONDS + RANDOM % every)); fi
  status=0
  wait $process 2>/dev/null || status=$?
  run=$(sed -n 's/^store: run \([0-9]*\) of runs.db$/\1/p' out.txt)
  [ -z "$run" ] || told+=("$run")
  case $status in 0) ended=$((ended + 1)) ;; 137) killed=$((killed + 1)) ;; *) die "exit status $status: $(tail -n 1 err.txt)" ;; esac
done
# What a run had done when it was killed is in the store, but for the last seconds.
runs() { "$assay" store runs.db | wc -l; }
before=$(runs) begin=$SECONDS
start 36000 7
until [ "$(runs)" -gt "$before" ]; do
  kill -0 $process 2>/dev/null || die "the process that went on has ended: $(tail -n 1 err.txt)"
  [ $((SECONDS - begin)) -lt 600 ] || die "a run that goes on is not in the store after 600 s"
  sleep 0.5
done
kill -9 $process
wait $process 2>/dev/null || true
told+=("$("$assay" store runs.db | awk 'END { print $1 }')")
killed=$((killed + 1)) process=
sleep 3

# ---- What is there ------------------------------------------------------------------------------
left=$(others | grep -vw "$BASHPID" || true)
for p in $left; do [ ! -e "/proc/$p" ] || [ "$(cat "/proc/$p/comm")" != assay ] || die "process $p is left"; done
files=$(ls | tr '\n' ' ') temporary=$(ls tmp | wc -l)
[ "$temporary" -eq 0 ] || die "$temporary temporary files are left: $(ls tmp)"
"$assay" store runs.db --export all.jsonl
"$assay" store runs.db >list.txt
for run in "${told[@]}"; do grep -q "^ *$run  " list.txt || die "run $run was told and is not in the store"; done
python3 - "$largest_wal" <<'PY' || die "the store is not whole, or too large"
import json, os, sqlite3, sys

def integrity(path):
    try:
        return sqlite3.connect(path).execute("PRAGMA integrity_check").fetchall()
    except sqlite3.DatabaseError as e:
        return [(str(e),)]

whole = integrity("runs.db")
# A page of zeros in the middle must be seen.
with open("runs.db", "rb") as store, open("damaged.db", "wb") as copy:
    pages = store.read()
    middle = len(pages) // 8192 * 4096
    copy.write(pages[:middle] + bytes(4096) + pages[middle + 4096 :])
if integrity("damaged.db") == [("ok",)]:
    sys.exit("integrity_check sees no damage")
runs = [json.loads(line) for line in open("all.jsonl")]
rows = sum(len(run["results"]) for run in runs)
bytes_of = lambda name: os.path.getsize(name) if os.path.exists(name) else 0
told, largest = bytes_of("all.jsonl"), max(len(json.dumps(run)) for run in runs)
print(f"integrity_check: {whole[0][0]}; {len(runs)} runs, {rows} rows; the store has {bytes_of('runs.db')} bytes, "
      f"its runs as JSON {told}; the largest write-ahead log {sys.argv[1]}, the largest run as JSON {largest}")
# SQLite empties the log at 1,000 pages of 4 KiB, and a transaction is in it as a whole.
ok = whole == [("ok",)] and bytes_of("runs.db") <= 2 * told + (1 << 20) and int(sys.argv[1]) <= 3 * largest + (8 << 20)
sys.exit(not ok)
PY
say "$killed processes killed with -9, $ended ended; ${#told[@]} runs were told and are in the store, $(wc -l <list.txt) are there; files: $files"
[ "$killed" -gt 0 ] || die "nothing was killed"
