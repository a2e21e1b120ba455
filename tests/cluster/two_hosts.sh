#!/usr/bin/env bash
# Two network namespaces of this machine act as two hosts (as root): a loop over runs on both, each run shared by the two,
# with a process of it killed on the way, compared with the same runs in one process.
#   tests/cluster/two_hosts.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/../.."
skip() { echo "skipped: $1"; exit 77; }
[ "$(id -u)" = 0 ] || skip "network namespaces need root"
command -v ip >/dev/null || skip "ip is missing: apt-get install iproute2"
folder=$(mkdir -p "${1:-outputs/two-hosts-trial}" && cd "${1:-outputs/two-hosts-trial}" && pwd)
rm -rf "$folder"/{one,two}
krt=$PWD/.venv/bin/krt
stop() { ip netns del krt0 2>/dev/null || true; ip netns del krt1 2>/dev/null || true; }
trap stop EXIT
stop
ip netns add krt0 2>/dev/null || skip "this machine does not let network namespaces be made"
ip netns add krt1
ip link add krtlink0 netns krt0 type veth peer name krtlink1 netns krt1
for host in 0 1; do
  ip -n krt$host addr add 10.77.0.$((host + 1))/24 dev krtlink$host
  ip -n krt$host link set krtlink$host up
  ip -n krt$host link set lo up
done

# A small network; float64 and frozen batch statistics: what differs then is the order of sums alone
small="protocol.increment=5 data.image_size=32 model.backbone=test_resnet model.embed_dim=32 model.heads=4 train.epochs=2"
exact="train.batch_norm=frozen train.precision=float64"
train_all() {  # FOLDER OPTIONS...: what each host does; a run that has failed is started again, on both, up to twice
  for run in "krt replay.per_class=5" "finetune" "krt seed=1"; do
    for _ in 1 2 3; do
      if "$krt" train digits_demo method=$run $small $exact --folder "$1/${run// /-}" "${@:2}"; then continue 2; fi
    done
    return 1
  done
}
export OMP_NUM_THREADS=1 krt small exact
export -f train_all
train_all "$folder/one"
for host in 1 0; do  # the rank as Slurm tells it
  SLURM_NODEID=$host GLOO_SOCKET_IFNAME=krtlink$host ip netns exec krt$host \
    bash -uc "train_all '$folder/two' --nnodes 2 --rendezvous 10.77.0.1:29555" > "$folder/host$host.log" 2>&1 &
  pids[host]=$!
done
killed=
while [ -z "$killed" ] && kill -0 "${pids[0]}" 2>/dev/null; do
  if [ -f "$folder/two/finetune/session_00/state.json" ]; then
    killed=$(ip netns pids krt1 | xargs -r ps -o pid=,args= -p | awk '/krt_core.cli train/ && !/torchrun|krt_core.launch/ {print $1; exit}')
    [ -z "$killed" ] || kill -9 "$killed"
  fi
  sleep 0.2
done
for host in 0 1; do wait "${pids[host]}" || { cat "$folder"/host*.log; exit 1; }; done
[ -n "$killed" ] || { echo "no process could be killed"; exit 1; }
.venv/bin/python - "$folder" <<'PY'
import json, sys
from pathlib import Path
import numpy as np
from krt_core.runs.folder import find_runs
alone, shared = (find_runs(f"{sys.argv[1]}/{name}") for name in ("one", "two"))
loss, scores, same = 0.0, 0.0, len(alone) == len(shared) == 3
for one, two in zip(alone, shared, strict=True):
    sessions = range(one.finished_sessions)
    loss = max(loss, *(abs(a["loss"] / b["loss"] - 1) for a, b in zip(one.epochs, two.epochs, strict=True)))
    scores = max(scores, *(float(np.abs(one.scores(t).scores - two.scores(t).scores).max()) for t in sessions))
    same &= all(one.session_state(t)["exemplar_ids"] == two.session_state(t)["exemplar_ids"] for t in sessions)
    same &= two.done and two.environment["reasons"]["processes"] == "2"
again = sum("exit code" in line for line in Path(sys.argv[1], "host0.log").read_text().splitlines())
said = {"runs": len(shared), "failed and started again": again, "largest difference of losses (relative)": loss}
print(json.dumps({**said, "of scores": scores, "exemplars equal": bool(same)}))
sys.exit(not (loss < 1e-6 and scores < 1e-5 and same and again))
PY
