#!/usr/bin/env bash
# Runs every fuzz target of the repository for the given time.
set -euo pipefail
cd "$(dirname "$0")/.."
time=${1:-30s}
n=0
while IFS=: read -r file target; do
  pkg=./$(dirname "$file")
  echo "fuzz $pkg $target"
  go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "$pkg" | tail -n 1
  n=$((n + 1))
done < <(git ls-files '*_test.go' | xargs grep -oE 'func Fuzz[A-Za-z0-9_]+' | sed 's/func //')
echo "fuzz: $n passed, 0 failed"
