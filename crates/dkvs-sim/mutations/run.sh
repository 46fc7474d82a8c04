#!/usr/bin/env bash
# Plants each bug of this directory in a copy of the tree, one at a time, and lets the simulator look for it.
#
#     crates/dkvs-sim/mutations/run.sh [NAME...]       all bugs, or those named
#     crates/dkvs-sim/mutations/run.sh --check         only whether each still fits the code
#
# Prints, for each, the seeds it took, as a row of the table in docs/testing.md. Seeds count up from FIRST (default 1);
# after SEEDS (default 3000) seeds without a violation the bug counts as missed, and the exit status is 1.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../../.." && pwd)
if [ "${1:-}" = --check ]; then
    cd "$top"
    for patch in "$here"/*.patch; do git apply --check "$patch"; done
    exit
fi
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
export CARGO_TARGET_DIR="${MUTATIONS_TARGET_DIR:-$top/target/mutations}"
# Each build serves a few seconds of running.
export CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_INCREMENTAL=true

(cd "$top" && git ls-files -z --cached --others --exclude-standard | tar --null --files-from=- -cf -) | tar -C "$copy" -xf -
cd "$copy"
git init -q .
git add --all
# What an earlier run left in the target directory is older.
find . -name '*.rs' -exec touch {} +

names=("$@")
if [ ${#names[@]} -eq 0 ]; then
    for patch in "$here"/*.patch; do names+=("$(basename "$patch" .patch)"); done
fi

missed=0
for name in "${names[@]}"; do
    git apply "$here/$name.patch"
    cargo build --quiet --release --package dkvs-sim
    found=$("$CARGO_TARGET_DIR/release/dkvs-sim" --seed "${FIRST:-1}" --seeds "${SEEDS:-3000}" --jobs "${JOBS:-2}" --until-failure |
        sed -n 's/^first failure after \([0-9]*\) seeds: \(.*\)$/\1 | \2/p' || true)
    printf '| %s | %s |\n' "$name" "${found:-missed}"
    [ -n "$found" ] || missed=1
    git checkout --quiet -- .
done
exit $missed
