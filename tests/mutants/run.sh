#!/usr/bin/env bash
# Breaks the source on purpose, one mutant at a time, and expects the tests to notice.
#
#   tests/mutants/run.sh [NAME…]      (all, if none is named)
#
# Works in a copy of the tracked files, with a target directory of its own
# (RINGSPAN_MUTANTS_TARGET, else target/mutants). A mutant is a patch with two lines before
# it: what it breaks, and the arguments of `cargo test` that run the smallest tests that have
# to fail. Prints a table; exits with 1 if a mutant survives, does not apply or does not
# compile. That the judges pass without a mutant is what ./test.sh proves.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
export CARGO_TARGET_DIR=${RINGSPAN_MUTANTS_TARGET:-$root/target/mutants}
# Longer than the slowest judge takes with its build.
limit=${RINGSPAN_MUTANTS_LIMIT:-600}

copy=$(mktemp -d)
trap 'rm -rf -- "$copy"' EXIT
(cd "$root" && git ls-files -z | xargs -0 tar -cf - 2>/dev/null) | tar -C "$copy" -xf -
cd "$copy"

names=("$@")
[ $# -gt 0 ] || names=($(cd "$here" && ls -- *.patch))
bad=0

row() { printf '| `%s` | %s | %s |\n' "$1" "$2" "$3"; }

# The tests that failed, from the runner's list of them.
failed() { sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p' "$copy/log" | sort -u | paste -sd' '; }

printf '| Mutant | What it breaks | Caught by |\n|---|---|---|\n'
for name in "${names[@]}"; do
    name=${name%.patch}
    patch=$here/$name.patch
    what=$(sed -n 's/^What:  *//p' "$patch")
    read -ra judge <<<"$(sed -n 's/^Judge: *//p' "$patch")"
    if ! patch -p1 --quiet --forward --fuzz=3 --no-backup-if-mismatch <"$patch" >"$copy/log" 2>&1; then
        row "$name" "$what" "does not apply: correct the patch"
        git -C "$root" show "HEAD:$(sed -n 's/^+++ b\///p' "$patch")" >"$(sed -n 's/^+++ b\///p' "$patch")"
        bad=1
        continue
    fi
    # cargo wants the target before `--`, the filters after.
    before=() after=()
    side=before
    for word in "${judge[@]}"; do
        if [ "$word" = -- ]; then side=after; elif [ $side = before ]; then before+=("$word"); else after+=("$word"); fi
    done
    if ! cargo test --locked --quiet --no-run "${before[@]}" >"$copy/log" 2>&1; then
        row "$name" "$what" "does not compile: correct the patch"
        bad=1
    elif timeout "$limit" cargo test --locked "${before[@]}" -- "${after[@]}" >"$copy/log" 2>&1; then
        row "$name" "$what" "**survived** \`${judge[*]}\`"
        bad=1
    else
        row "$name" "$what" "$(failed)"
    fi
    patch -p1 --quiet --reverse --fuzz=3 --no-backup-if-mismatch <"$patch"
    # A build that is no newer than the patched source would be taken for it.
    touch "$(sed -n 's/^+++ b\///p' "$patch")"
done
exit $bad
