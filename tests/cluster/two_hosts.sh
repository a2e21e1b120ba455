#!/usr/bin/env bash
# Two network namespaces of this machine act as two hosts (as root): one run over both, compared with the same run in one
# process.
#   tests/cluster/two_hosts.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/../.."
skip() { echo "skipped: $1"; exit 77; }
[ "$(id -u)" = 0 ] || skip "network namespaces need root"
command -v ip >/dev/null || skip "ip is missing: apt-get install iproute2"
folder=$(mkdir -p "${1:-outputs/two-hosts-trial}" && cd "${1:-outputs/two-hosts-trial}" && pwd)
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

# float64 and common batch statistics: what differs then is the order of sums alone
cat > "$folder/matrix.yaml" <<'YAML'
presets: [digits_demo]
methods: [krt replay.per_class=5]
overrides: {protocol.increment: 5, train.epochs: 2, train.batch_norm: sync, train.precision: float64}
analysis: []
workers: 2
YAML
export OMP_NUM_THREADS=1
"$krt" bench "$folder/matrix.yaml" --folder "$folder/one"
for host in 1 0; do
  # each host has its own idea of which slots of the machine are free
  mkdir -p "$folder/tmp$host"
  KRT_SLOTS=$folder/tmp$host GLOO_SOCKET_IFNAME=krtlink$host ip netns exec krt$host \
    "$krt" bench "$folder/matrix.yaml" --folder "$folder/two" --launch torchrun --nnodes 2 --node-rank $host \
    --rendezvous 10.77.0.1:29555 > "$folder/host$host.log" 2>&1 &
  pids[host]=$!
done
for host in 0 1; do wait "${pids[host]}" || { cat "$folder"/host*.log; exit 1; }; done
cat "$folder"/host*.log
.venv/bin/python - "$folder" <<'PY'
import json, sys
import numpy as np
from krt_core.runs.folder import find_runs
(one,), (two,) = (find_runs(f"{sys.argv[1]}/{name}") for name in ("one", "two"))
loss = max(abs(a["loss"] / b["loss"] - 1) for a, b in zip(one.epochs, two.epochs, strict=True))
sessions = range(one.finished_sessions)
scores = max(float(np.abs(one.scores(t).scores - two.scores(t).scores).max()) for t in sessions)
same = all(one.session_state(t)["exemplar_ids"] == two.session_state(t)["exemplar_ids"] for t in sessions)
print(json.dumps({"largest difference of losses (relative)": loss, "of scores": scores, "exemplars equal": same}))
sys.exit(not (loss < 1e-6 and scores < 1e-5 and same and two.environment["reasons"]["processes"] == "2"))
PY
