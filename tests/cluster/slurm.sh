#!/usr/bin/env bash
# A Slurm cluster of this one machine (Debian's slurmctld and slurmd, as root): runs a matrix end to end, with one job
# cancelled and queued again on the way, and compares the results with those of `krt bench` without Slurm.
#   tests/cluster/slurm.sh [MATRIX] [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/../.."
matrix=${1:-digits}
folder=$(mkdir -p "${2:-outputs/slurm-trial}" && cd "${2:-outputs/slurm-trial}" && pwd)
skip() { echo "skipped: $1"; exit 77; }
[ "$(id -u)" = 0 ] || skip "slurmd needs root"
for tool in slurmctld slurmd munged sbatch; do
  PATH=$PATH:/usr/sbin command -v $tool >/dev/null || skip "$tool is missing: apt-get install slurmctld slurmd slurm-client munge"
done
krt=.venv/bin/krt
scratch=$(mktemp -d)
name=$(hostname -s)
mkdir -p "$scratch"/{state,spool}
chmod 755 "$scratch"
cat > "$scratch/slurm.conf" <<CONF
ClusterName=trial
SlurmctldHost=$name(127.0.0.1)
SlurmUser=root
SlurmctldPort=16817
SlurmdPort=16818
AuthType=auth/munge
StateSaveLocation=$scratch/state
SlurmdSpoolDir=$scratch/spool
SlurmctldPidFile=$scratch/slurmctld.pid
SlurmdPidFile=$scratch/slurmd.pid
SlurmctldLogFile=$scratch/slurmctld.log
SlurmdLogFile=$scratch/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
KillWait=10
MpiDefault=none
NodeName=$name NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$scratch/slurm.conf
stop() {
  scancel --user root 2>/dev/null || true
  for daemon in slurmd slurmctld; do
    [ -f "$scratch/$daemon.pid" ] && kill "$(cat "$scratch/$daemon.pid")" 2>/dev/null || true
  done
  rm -rf "$scratch"
}
trap stop EXIT
if ! munge -n >/dev/null 2>&1; then
  [ -f /etc/munge/munge.key ] || skip "munge has no key"
  mkdir -p /run/munge && chown munge: /run/munge
  runuser -u munge -- /usr/sbin/munged || skip "munged does not start"
fi
/usr/sbin/slurmctld
/usr/sbin/slurmd
for _ in $(seq 30); do sinfo --noheader --format=%t 2>/dev/null | grep -q idle && break; sleep 1; done
sinfo

echo "== without Slurm"
"$krt" bench "$matrix" --folder "$folder/plain"
echo "== with Slurm"
"$krt" bench "$matrix" --folder "$folder/slurm" --launch slurm > "$folder/slurm.log" 2>&1 &
bench=$!
requeued=
for _ in $(seq 600); do
  kill -0 $bench 2>/dev/null || break
  # the first run that is past its first epoch is taken from the cluster and queued again
  if [ -z "$requeued" ] && run=$(find "$folder/slurm" -name resume.pt 2>/dev/null | head -1) && [ -n "$run" ]; then
    requeued=$(squeue --noheader --array --states=RUNNING --format=%i | head -1)
    scontrol requeue "$requeued"
    echo "queued again: $requeued"
  fi
  sleep 1
done
wait $bench || { cat "$folder/slurm.log"; exit 1; }
cat "$folder/slurm.log"
[ -n "$requeued" ] || { echo "no job could be queued again"; exit 1; }
.venv/bin/python - "$folder/plain" "$folder/slurm" <<'PY'
import json, sys
from pathlib import Path
from benchmarks.interruptions import apart
runs = apart(*map(Path, sys.argv[1:]))
attempts = [json.loads(p.read_text())["attempts"] for p in Path(sys.argv[2]).glob("jobs/*/state.json")]
equal = bool(runs) and not any(runs.values())
print(json.dumps({"runs": len(runs), "equal": equal, "attempts": sorted(attempts)}))
sys.exit(not (equal and max(attempts) > 1))
PY
