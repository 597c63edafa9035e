#!/usr/bin/env bash
# Builds the release archives into dist/: one static binary for each platform, with what it
# takes to run it, and their checksums. The same commit and the same Go give the same bytes:
# no time, path, user or build id of this machine goes in. TestRelease holds it to that.
# usage: [DIST=dist] [ARCHS="amd64 arm64"] deploy/release.sh
set -euo pipefail
cd "$(dirname "$0")/.."
dist=${DIST:-dist}
version=$(sed -n 's/^const version = "\(.*\)"$/\1/p' cmd/chronik/version.go)
[ -n "$version" ] || { echo "release: no version in cmd/chronik/version.go" >&2; exit 1; }
# The time in the archives: that of the commit, or none.
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
rm -rf "$dist"
mkdir -p "$dist"
archives=()
for arch in ${ARCHS:-amd64 arm64}; do
  name=chronik-$version-linux-$arch
  mkdir -p "$dist/$name/deploy"
  # The baseline of each architecture, whatever is set here: it runs everywhere.
  CGO_ENABLED=0 GOOS=linux GOARCH=$arch GOAMD64=v1 GOARM64=v8.0 GOFLAGS= GOEXPERIMENT= \
    go build -trimpath -buildvcs=false -ldflags '-s -w -buildid=' -o "$dist/$name/chronik" ./cmd/chronik
  cp README.md CHANGELOG.md LICENSE "$dist/$name/"
  cp deploy/chronik.service deploy/grafana.json "$dist/$name/deploy/"
  chmod -R u=rwX,go=rX "$dist/$name"
  tar --create --directory "$dist" --sort=name --format=ustar --owner=0 --group=0 --numeric-owner --mtime="@$epoch" "$name" |
    gzip --no-name --best >"$dist/$name.tar.gz"
  rm -r "${dist:?}/$name"
  archives+=("$name.tar.gz")
done
(cd "$dist" && sha256sum "${archives[@]}" >SHA256SUMS && cat SHA256SUMS)
