#!/usr/bin/env bash
# Brings inputs that fuzzing found interesting (each reached code that none before it did)
# from the cache into testdata/fuzz, where 'go test' runs them and fuzzing begins with them:
# for each target the smallest, at most EACH files of at most 2 KiB. What is there stays.
# usage: fuzz-corpus.sh [CACHE] [EACH]
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${1:-$(go env GOCACHE)/fuzz/$(go list -m)}
each=${2:-100}
while IFS=: read -r file target; do
  pkg=$(dirname "$file") from=$cache/$(dirname "$file")/$target
  [ -d "$from" ] || continue
  to=$pkg/testdata/fuzz/$target
  mkdir -p "$to"
  have=$(find "$to" -type f | wc -l)
  find "$from" -type f -size -2049c -printf '%s %f\n' | sort -n | awk -v most=$((each - have)) 'NR <= most' | while read -r _ name; do
    cp -n "$from/$name" "$to/$name"
  done
done < <(git ls-files '*_test.go' | xargs grep -oE '^func Fuzz[A-Za-z0-9_]+' | sed 's/func //')
find . -path '*/testdata/fuzz/*' -type f | wc -l
