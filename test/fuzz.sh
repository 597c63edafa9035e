#!/usr/bin/env bash
# Runs every fuzz target. Each package is compiled once, PARALLEL targets run side by side.
# Those of what comes from disks and strangers (wire frames, batches, raftlog and segment
# files) run for TIME, the others for TIME_OF_OTHERS.
# Minimising is cut short: where goroutines make coverage unsteady it would eat all the time.
# What is interesting is kept in the go command's cache, as 'go test -fuzz' does.
# usage: [PARALLEL=2] [TALLY=file [RESUME=1]] fuzz.sh TIME [TIME_OF_OTHERS]
# TALLY gets a line for each target: commit, target, seconds, execs, ok or FAIL.
# With RESUME a target runs for what the tally's good lines lack of its time.
set -uo pipefail
cd "$(dirname "$0")/.."
export time=${1:-30s}
export others=${2:-$time}
export TALLY=${TALLY:-}
export RESUME=${RESUME:-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export work
cache=$(go env GOCACHE)/fuzz/$(go list -m)
commit=$(git rev-parse --short HEAD 2>/dev/null)
[ -z "$(git status --porcelain --untracked-files=no 2>/dev/null)" ] || commit+=+
export cache commit

run() { # run PKG TARGET
  local pkg=$1 target=$2 bin t began=$SECONDS log="$work/${1//\//_}.$2" verdict=ok note= rc
  bin="$work/${pkg//\//_}.test"
  case $pkg in
    internal/wire | internal/record | internal/raftlog | internal/segment) t=$time ;;
    *) t=$others ;;
  esac
  if [ -n "$RESUME" ]; then
    t=$(lacks "$pkg.$target" "$t")
    [ "$t" -gt 0 ] || { echo "done $pkg $target: has its time"; return 0; }
    t=${t}s
  fi
  (cd "$pkg" && "$bin" -test.run '^$' -test.fuzz "^$target\$" -test.fuzztime "$t" -test.parallel 1 \
    -test.fuzzminimizetime 20x -test.fuzzcachedir "$cache/$pkg") >"$log" 2>&1
  rc=$?
  # The fuzzing engine reports its own time limit as an error now and then: no input failed.
  if [ $rc -ne 0 ] && grep -q 'context deadline exceeded' "$log" && ! grep -q 'Failing input' "$log"; then
    note=" (ended by the engine's limit)"
  elif [ $rc -ne 0 ]; then
    verdict=FAIL
  fi
  local execs
  execs=$(grep -oE 'execs: [0-9]+' "$log" | tail -n 1 | grep -oE '[0-9]+')
  printf '%-4s %s %s %ss: %s execs%s\n' "$verdict" "$pkg" "$target" $((SECONDS - began)) "${execs:-0}" "$note"
  [ $verdict = ok ] || tail -n 60 "$log"
  [ -z "$TALLY" ] || printf '%s\t%s.%s\t%s\t%s\t%s\n' "$commit" "$pkg" "$target" $((SECONDS - began)) "${execs:-0}" "$verdict" >>"$TALLY"
  [ $verdict = ok ]
}
# lacks TARGET TIME prints the seconds of TIME (of the form 10m or 600s) that the tally has not.
lacks() {
  local want=${2%[ms]}
  [ "${2: -1}" != m ] || want=$((want * 60))
  awk -F '\t' -v target="$1" -v want="$want" '$2 == target && $5 == "ok" { want -= $3 } END { print want < 0 ? 0 : want }' "$TALLY"
}
export -f run lacks

targets=$work/targets
git ls-files '*_test.go' | xargs grep -oE '^func Fuzz[A-Za-z0-9_]+' | sed 's/func //' |
  while IFS=: read -r file target; do echo "$(dirname "$file") $target"; done >"$targets"
cut -d' ' -f1 "$targets" | sort -u >"$work/packages"
while read -r pkg; do
  go test -c -fuzz=. -o "$work/${pkg//\//_}.test" "./$pkg" || exit 1
done <"$work/packages"
# Bytes of strangers last longest and begin first.
{ grep -E '^internal/(wire|record|raftlog|segment) ' "$targets"; grep -vE '^internal/(wire|record|raftlog|segment) ' "$targets"; } |
  xargs -P "${PARALLEL:-2}" -L 1 bash -c 'out=$(run "$@"); rc=$?; echo "$out"; [ $rc -eq 0 ] || touch "$work/failed.${1//\//_}.$2"' _
total=$(wc -l <"$targets")
failed=$(find "$work" -name 'failed.*' | wc -l)
echo "fuzz: $((total - failed)) passed, $failed failed"
[ "$failed" -eq 0 ]
