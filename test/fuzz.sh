#!/usr/bin/env bash
# Runs every fuzz target: those of what comes from disks and strangers (wire frames, batches,
# raftlog and segment files) for the first time, the others for the second.
# Minimising is cut short: where goroutines make coverage unsteady it would eat all the time.
# usage: fuzz.sh TIME [TIME_OF_OTHERS]
set -uo pipefail
cd "$(dirname "$0")/.."
time=${1:-30s}
others=${2:-$time}
passed=0 failed=0
out=$(mktemp)
trap 'rm -f "$out"' EXIT
while IFS=: read -r file target; do
  pkg=./$(dirname "$file")
  case $pkg in
    */internal/wire | */internal/record | */internal/raftlog | */internal/segment) t=$time ;;
    *) t=$others ;;
  esac
  if go test -run '^$' -fuzz "^$target\$" -fuzztime "$t" -fuzzminimizetime 20x "$pkg" >"$out" 2>&1; then
    passed=$((passed + 1))
    echo "ok   $pkg $target $t: $(grep -oE 'execs: [0-9]+' "$out" | tail -n 1)"
  elif grep -q 'context deadline exceeded' "$out" && ! grep -q 'Failing input' "$out"; then
    # The fuzzing engine reports its own time limit as an error now and then: no input failed.
    passed=$((passed + 1))
    echo "ok   $pkg $target $t: $(grep -oE 'execs: [0-9]+' "$out" | tail -n 1) (ended by the engine's limit)"
  else
    failed=$((failed + 1))
    echo "FAIL $pkg $target"
    tail -n 60 "$out"
  fi
done < <(git ls-files '*_test.go' | xargs grep -oE 'func Fuzz[A-Za-z0-9_]+' | sed 's/func //')
echo "fuzz: $passed passed, $failed failed"
[ $failed -eq 0 ]
