#!/usr/bin/env bash
# Looks for data races between the threads of the CPU kernels: every kernel, data type and
# instruction set, under ThreadSanitizer. Prints what it did; any race ends it with an error.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
csrc=$here/../../../csrc
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
compile() { "${CXX:-g++}" -std=c++17 -O1 -g1 -fsanitize=thread -ffp-contract=off "-I$csrc" "$@"; }

once=("$csrc"/cpu/{dispatch,batch_norm_distance}.cpp)  # the others are compiled for each instruction set
sets=("portable")
definitions=()
if [[ $(uname -m) == x86_64 ]]; then
    sets+=("avx2 -mavx2 -mf16c"
        "avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mf16c -Wno-uninitialized")
    definitions=(-DZSCGAN_X86)
fi
for set in "${sets[@]}"; do
    read -ra flags <<< "$set"
    for source in "$csrc"/cpu/*.cpp; do
        [[ " ${once[*]} " != *" $source "* ]] || continue
        compile -fopenmp "-DZSCGAN_ISA=${flags[0]}" "${flags[@]:1}" \
            -c "$source" -o "$work/${flags[0]}_$(basename "$source").o"
    done
done
compile "${definitions[@]}" -pthread "$here/driver.cpp" "$here/openmp.cpp" \
    "${once[@]}" "$work"/*.o -o "$work/driver"

if "$work/driver" race > /dev/null 2> "$work/race" || ! grep -q 'WARNING: ThreadSanitizer: data race' "$work/race"; then
    echo "error: the sanitizer does not see a race that is there" >&2
    exit 1
fi
printf '%s, %s, commit %s\n' "$("${CXX:-g++}" --version | head -1)" \
    "$(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2)" "$(git -C "$here" rev-parse HEAD)"
"$work/driver"
echo "no race; a race made on purpose was reported"
