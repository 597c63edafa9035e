#!/usr/bin/env bash
# Runs the end-to-end scripts with kafka-python 2.0.2. Installs it into a venv of its own.
set -euo pipefail
cd "$(dirname "$0")"
root=$(cd ../.. && pwd)
if ! command -v python3 >/dev/null; then
  echo "SKIP e2e: python3 is not installed"
  exit 0
fi
venv=$root/test/compat/.venv-kafka-python-2.0.2
if [ ! -x "$venv/bin/python" ]; then
  python3 -m venv "$venv"
  "$venv/bin/pip" install -q 'kafka-python==2.0.2' 'six==1.16.0'
fi
(cd "$root" && go build -o bin/chronik ./cmd/chronik)
scripts=("$@")
[ ${#scripts[@]} -gt 0 ] || scripts=(snapshot_story failover lifecycle)
for s in "${scripts[@]}"; do
  timeout 300 "$venv/bin/python" "$s.py"
done
echo "e2e: ${#scripts[@]} passed, 0 failed"
