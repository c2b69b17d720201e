#!/usr/bin/env bash
# Slurm on this machine: munged, slurmctld and two slurmd on 127.0.0.1, with all state in a folder.
#   slurm_loopback.sh start FOLDER   then SLURM_CONF=FOLDER/slurm.conf names the cluster
#   slurm_loopback.sh stop FOLDER
set -euo pipefail
what=$1 folder=$(realpath "$2")

# A port that nobody listens on, from 20000 on.
port=$((20000 + ($$ * 7) % 10000))
free_port() {
  while port=$((port + 1)); (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
  echo "$port"
}

start() {
  local host user ports=()
  host=$(hostname -s) user=$(id -un)
  for k in 0 1 2; do
    port=$(free_port)
    ports+=("$port")
  done
  mkdir -p "$folder"/{munge,state,log}
  chmod 755 "$folder"
  (umask 077; head -c 128 /dev/urandom >"$folder/munge/key")
  munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/munge/pid" \
    --log-file="$folder/log/munged" --seed-file="$folder/munge/seed" 2>>"$folder/log/started"
  cat >"$folder/slurm.conf" <<CONF
ClusterName=assay
SlurmctldHost=$host(127.0.0.1)
SlurmUser=$user
SlurmdUser=$user
SlurmctldPort=${ports[0]}
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool.%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmctldLogFile=$folder/log/slurmctld
SlurmdLogFile=$folder/log/slurmd.%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=10000,bf_interval=1,batch_sched_delay=0,requeue_delay=1
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
JobCompType=jobcomp/none
ReturnToService=2
MaxArraySize=100001
MaxJobCount=100000
MinJobAge=10
KillWait=2
NodeName=assay1 NodeHostname=$host NodeAddr=127.0.0.1 Port=${ports[1]} CPUs=2
NodeName=assay2 NodeHostname=$host NodeAddr=127.0.0.1 Port=${ports[2]} CPUs=2
PartitionName=all Nodes=ALL Default=YES State=UP
CONF
  # Jobs are limited by nothing here, and a machine may have no control groups. Before 24.05 slurmd
  # does not start without them.
  if [ "$(printf '%s\n' 24.05 "$(slurmd -V | grep -o '[0-9][0-9.]*')" | sort -V | head -n 1)" = 24.05 ]; then
    echo CgroupPlugin=disabled >"$folder/cgroup.conf"
  elif ! grep -q cgroup /proc/mounts; then
    echo "no control groups are mounted, and this slurmd does not start without them"
    exit 77
  fi
  mkdir -p "$folder"/spool.assay{1,2}
  export SLURM_CONF=$folder/slurm.conf
  slurmctld -c
  slurmd -N assay1
  slurmd -N assay2
  for _ in $(seq 1500); do
    [ "$(sinfo -h -t idle -o %D 2>/dev/null || true)" != 2 ] || return 0
    sleep 0.2
  done
  sinfo >&2 || true
  tail -n 5 "$folder"/log/* >&2
  return 1
}

stop() {
  local file pid
  for file in "$folder"/slurmctld.pid "$folder"/slurmd.*.pid "$folder"/munge/pid; do
    [ -f "$file" ] && pid=$(cat "$file") && kill "$pid" 2>/dev/null || continue
    for _ in $(seq 1500); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
  done
}

"$what"
