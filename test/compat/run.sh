#!/usr/bin/env bash
# The client matrix: each client produces and consumes numbered records against three
# nodes. Installs the clients it needs; says plainly what it skips. Args: client names.
set -uo pipefail
cd "$(dirname "$0")"
here=$PWD
root=$(cd ../.. && pwd)
n=${RECORDS:-10000}
passed=0 failed=0 skipped=0

venv() { # venv NAME PACKAGE...: prints the interpreter
  local dir=$here/.venv-$1
  shift
  if [ ! -x "$dir/bin/python" ] || [ ! -e "$dir/.done" ]; then
    python3 -m venv "$dir" && "$dir/bin/pip" install -q "$@" >&2 && touch "$dir/.done" || return 1
  fi
  echo "$dir/bin/python"
}

check() { # check NAME COMMAND...
  local name=$1
  shift
  if timeout 240 "$@"; then
    passed=$((passed + 1))
  else
    echo "FAIL $name"
    failed=$((failed + 1))
  fi
}

skip() { echo "SKIP $1: $2"; skipped=$((skipped + 1)); }

(cd "$root" && go build -o bin/chronik ./cmd/chronik) || exit 1
data=$(mktemp -d)
base=${BASE_PORT:-$((21000 + RANDOM % 20000))}
"$root/bin/chronik" dev --data-dir "$data" --base-port "$base" --set topic.default_partitions=4 >"$data/dev.out" 2>&1 &
dev=$!
trap 'kill -INT $dev 2>/dev/null; wait $dev 2>/dev/null; rm -rf "$data"' EXIT
for _ in $(seq 600); do
  grep -q 'ready after' "$data/dev.out" && break
  kill -0 $dev 2>/dev/null || { cat "$data/dev.out"; exit 1; }
  sleep 0.1
done
boot=127.0.0.1:$base,127.0.0.1:$((base + 1)),127.0.0.1:$((base + 2))

want() { [ ${#chosen[@]} -eq 0 ] || [[ " ${chosen[*]} " == *" $1 "* ]]; }
chosen=("$@")

if command -v python3 >/dev/null; then
  if want kafka-python-2.0.2; then
    if py=$(venv kafka-python-2.0.2 kafka-python==2.0.2 six==1.16.0); then
      check kafka-python-2.0.2-0.10 "$py" kafka_python.py "$boot" kp-old-fixed "$n" 0.10.0
      check kafka-python-2.0.2 "$py" kafka_python.py "$boot" kp-old-detect "$n"
    else skip kafka-python-2.0.2 "not installable here"; fi
  fi
  if want kafka-python; then
    if py=$(venv kafka-python kafka-python); then
      check kafka-python "$py" kafka_python.py "$boot" kp-new "$n"
    else skip kafka-python "not installable here"; fi
  fi
  if want confluent-kafka; then
    if py=$(venv confluent-kafka confluent-kafka); then
      check confluent-kafka "$py" confluent.py "$boot" confluent "$n"
    else skip confluent-kafka "not installable here"; fi
  fi
else
  skip python "python3 is not installed"
fi
if want java; then
  if command -v mvn >/dev/null && command -v java >/dev/null; then
    if (cd java && mvn -q -B compile dependency:build-classpath -Dmdep.outputFile=target/classpath >&2); then
      check java java -Xmx256m -cp "java/target/classes:$(cat java/target/classpath)" Compat "$boot" java "$n"
    else
      skip java "Maven could not fetch the client"
    fi
  else
    skip java "java and mvn are not installed"
  fi
fi
for bad in 'panic:' 'fatal error:' 'invariant broken'; do
  if grep -q "$bad" "$data"/node-*.log; then echo "FAIL a node's log shows $bad"; failed=$((failed + 1)); fi
done
if [ $failed -gt 0 ]; then tail -n 40 "$data"/node-*.log; fi
echo "compat: $passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
