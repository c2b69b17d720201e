#!/usr/bin/env bash
# A sweep on a real engine of this machine, whose jobs are cancelled and killed at random, and of
# which some are delivered twice. Afterwards the commands that `assay sweep status` tells make it
# whole, and the merged store is compared, row for row, with the store of one process.
#   sweep_engine.sh slurm|parallel ASSAY [SHARDS [SEED]]
set -euo pipefail
engine=$1 assay=$(realpath "$2") shards=${3:-40} seed=${4:-$(date +%s)}
here=$(realpath "$(dirname "$0")")

case "$engine" in
  slurm) needed="slurmctld slurmd munged sbatch" packages="slurm-wlm munge" ;;
  parallel) needed=parallel packages=parallel ;;
esac
export PATH=$PATH:/usr/sbin
for program in $needed; do
  command -v "$program" >/dev/null || { echo "$program is not installed (packages $packages)"; exit 77; }
done

work=$(mktemp -d "${TMPDIR:-/tmp}/assay-sweep.XXXXXX")
finish() {
  local left
  left=$(jobs -p)
  [ -z "$left" ] || kill $left 2>/dev/null || true
  [ "$engine" != slurm ] || "$here/slurm_loopback.sh" stop "$work/slurm"
  rm -rf "$work"
}
trap finish EXIT
say() { printf '%6d s  %s\n' $SECONDS "$*"; }
die() { say "$*" >&2; exit 1; }
RANDOM=$seed
say "engine $engine, $shards shards, seed $seed"

# Small cases, one a shard; every 20th is causal, and the candidate gets many of these wrong.
for ((k = 0; k < shards; ++k)); do
  echo "attention b=1 h=1 l=$((k % 13 + 1))x$((k % 31 + 2)) d=$((k % 7 + 1)) seed=$k$([ $((k % 20)) -ne 7 ] || echo ' causal')"
done >"$work/cases"
cd "$work"
plan=${work##*/}
command=(check --cases cases --candidate fault:causal-off-by-one --jobs 1)
"$assay" "${command[@]}" --store one.db >one.txt 2>&1 || [ $? -eq 1 ]
say "one process: $(tail -n 2 one.txt | head -n 1)"
"$assay" sweep plan "$plan" --shards "$shards" -- "${command[@]}"

# submit [LIST]: these shards, or all. busy: whether jobs are left.
if [ "$engine" = slurm ]; then
  "$here/slurm_loopback.sh" start slurm
  export SLURM_CONF=$work/slurm/slurm.conf
  submit() { "$assay" sweep write "$plan" --engine slurm ${1:+--only "$1"} | sbatch >/dev/null; }
  # Two jobs are cancelled before they begin.
  submit_all() {
    local job
    job=$("$assay" sweep write "$plan" --engine slurm | sbatch --parsable --hold)
    scancel "${job}_$((RANDOM % shards))"
    scancel "${job}_$((RANDOM % shards))"
    cancelled=2
    scontrol release "$job"
  }
  # Slurm waits two minutes before it starts a job again that was put back.
  busy() { [ -n "$(squeue -h -o %i)" ]; }
  cancel() {
    local running
    mapfile -t running < <(squeue -h -t R -o %i)
    [ ${#running[@]} -gt 0 ] || return 1
    scancel "${running[RANDOM % ${#running[@]}]}"
  }
else
  submitted=0
  submit() {
    local commands=commands.$((submitted += 1))
    "$assay" sweep write "$plan" --engine parallel ${1:+--only "$1"} >"$commands"
    parallel --jobs 2 --will-cite <"$commands" >>parallel.txt 2>&1 &  # without --retries, so that something is missing
  }
  submit_all() { submit; }
  busy() { [ -n "$(jobs -r)" ]; }
  cancel() { return 1; }  # its jobs are killed only
fi
# Kills a process of a shard with -9. The name of the plan is that of this folder alone.
kill_one() {
  local pids _
  for _ in {1..10}; do  # one ends before it is hit
    mapfile -t pids < <(pgrep -f "sweep run $plan")
    [ ${#pids[@]} -eq 0 ] || ! kill -9 "${pids[RANDOM % ${#pids[@]}]}" 2>/dev/null || return 0
  done
  return 1
}

cancelled=0 killed=0
submit_all
twice=$((RANDOM % (shards - 4)))
submit "$twice-$((twice + 4))"
submit "$twice-$((twice + 4))"
while busy && [ $SECONDS -lt 3000 ]; do
  # So many end early that most shards still end: a fast engine would leave nothing to lose later.
  if [ $((cancelled + killed)) -ge $((shards / 2)) ]; then sleep 0.1
  elif [ $((RANDOM % 2)) -eq 0 ]; then ! cancel || cancelled=$((cancelled + 1)); else ! kill_one || killed=$((killed + 1)); fi
  [ "$shards" -lt 100 ] || sleep 0.$((RANDOM % 9 + 1))
  # What is left are shards that were put back and wait; the commands of `status` run them.
  [ "$engine" != slurm ] || [ -n "$(squeue -h -t R,CG -o %i)" ] || [ "$(squeue -h -t PD -o %r | grep -vc BeginTime)" -gt 0 ] ||
    { say "$(squeue -h -r -t PD -o %i | wc -l) jobs wait to be started again: cancelled"; scancel --name="$(squeue -h -o %j | head -n 1)"; sleep 1; break; }
done
say "the engine has ended: $cancelled jobs cancelled, $killed processes killed with -9, shards $twice-$((twice + 4)) delivered three times"
[ $((cancelled + killed)) -gt 0 ] || die "nothing was cancelled or killed"

# A copy in the folder is one more delivery, of another name. A disk loses a shard and half of another.
mapfile -t there < <(ls "$plan".shards/*.json)
[ ${#there[@]} -ge 3 ] || die "${#there[@]} shards have ended, which is too few to lose some"
cp "${there[0]}" "$plan".shards/delivered-again.json
rm "${there[1]}"
truncate -s 100 "${there[2]}"
"$assay" sweep status "$plan" >status.txt && die "nothing is missing, so nothing was tried"
cat status.txt
assay() { "$assay" "$@"; }
missing=$(sed -n "s/^  assay sweep run $plan //p" status.txt | head -n 1)
# What is missing goes to the engine again. The commands that are told mend the rest.
[ -z "$missing" ] || { submit "$missing"; while busy; do sleep 0.2; done; }
"$assay" sweep status "$plan" >status.txt || true
grep '^  ' status.txt | while read -r line; do
  eval "$line" </dev/null >mended.txt 2>&1 || [ $? -eq 1 ] || { cat mended.txt; die "$line"; }
done
"$assay" sweep status "$plan" || die "the sweep is not whole"

"$assay" sweep merge "$plan" --store whole.db >whole.txt 2>&1 || [ $? -eq 1 ]
# Times aside: those of rows, of the run, and of its sentence.
rows() { "$assay" store "$1" --export "$1.jsonl" && sed -E 's/"(seconds|judge_seconds)":[^,}]*/"\1":0/g; s/"started":"[^"]*"/"started":""/; s/; [0-9.]+ s"/"/' "$1.jsonl"; }
rows one.db >one.rows
rows whole.db >whole.rows
[ "$(grep -o '"outcome"' one.rows | wc -l)" -eq "$shards" ] || die "the store of one process has not $shards rows"
cmp one.rows whole.rows || die "the stores differ"
! sed 's/"pass"/"fail"/' one.rows | cmp -s - whole.rows || die "the comparison sees no difference"
say "the merged store has the $shards rows of the store of one process: $(tail -n 2 whole.txt | head -n 1)"
