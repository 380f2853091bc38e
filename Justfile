# `./justw RECIPE`. A recipe that outgrows a few lines becomes a program.

set shell := ["bash", "-euo", "pipefail", "-c"]
set positional-arguments

lab := "target/release/trilith-lab"
trio := "target/release/trilith-trio"
sim := "target/release/trilith-sim"

# List the recipes.
default:
    @{{ just_executable() }} --list --unsorted

# Install what this host lacks (Debian 12, as root); quick when nothing is missing.
setup:
    @image/setup

# Format, lints, licences, unit tests, each fuzz target over its seeds, short simulation: before every commit, under 3 minutes warm.
check *env: setup licences
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- --deny warnings
    env {{ env }} cargo test --workspace --quiet
    cargo test --quiet --manifest-path fuzz/Cargo.toml --target-dir target --lib
    cargo build --release --quiet --workspace --bin trilith-sim
    {{ sim }} 2000

# The licences of all dependencies against the list under review. (Advisories need a database from outside: not here.)
licences:
    @cargo metadata --locked --format-version 1 | jq --raw-output '.packages[] | select(.source) | .license // "none"' \
        | sort --unique | diff tests/budgets/licences - \
        || { echo "licences: the dependencies' licences differ from tests/budgets/licences: review, then record them there" >&2; exit 1; }

# How exposed each unit is, against the list under review, tests/budgets/units.
units: root
    @image/build run image/unit-security

# Everything that check does, with the root tree in which units and HAProxy are tested (then nothing is left out), how exposed the units
# are, the laboratory's own tests, and a few documents and versions of a service, good and bad, under load. Then the disk in all formats,
# with foreign judges, and three machines that boot what is released. (Of the whole workspace, as the programs are built: a package alone
# has other features of its libraries, and all would be compiled again.)
[doc('Everything that shows whether Trilith works, but for what takes longer than all this together.')]
test: root units (check "TRILITH_TEST_ALL=yes") binaries
    cargo test --release --workspace --test laboratory -- --ignored --test-threads 1
    {{ lab }} lab config-roll --changes 4 --upgrades 4
    {{ just_executable() }} conformance --service lab
    {{ trio }} packed ova

# Three virtual machines of the image, from power-on to another version on all of them; --lab: three containers, and more faults, in two minutes.
demo where="": root binaries
    @case "$1" in \
        "") {{ trio }} demo ;; \
        --lab) {{ lab }} demo ;; \
        *) echo "demo: '$1' is not known: --lab, or nothing" >&2; exit 64 ;; \
    esac

# The laboratory: up [--peer] | down | status | shell NODE | client [CMD…] | config-roll [--changes N] [--upgrades N] | mixed [COMMIT].
lab *args: setup
    @case "${1:-}" in up | config-roll | mixed) {{ just_executable() }} binaries ;; *) [ -x {{ lab }} ] || {{ just_executable() }} binaries ;; esac
    @if [ "${1:-}" = mixed ]; then tests/lab/mixed "${@:2}"; else {{ lab }} lab "$@"; fi

# Simulate that many seeds, or one again: sim 100000, sim --seed 8361 [--trace]; sim bugs plants each bug, sim explore tries every order
# of what can happen, as far as its number of states reaches.
sim *args:
    @cargo build --release --quiet --workspace --bin trilith-sim
    @{{ sim }} "$@"

# Three virtual machines: up | down | status | console NODE | ssh NODE [CMD…] | client [CMD…] | power-cut NODE | power-on NODE |
# pause NODE [SECONDS] | resume NODE | test [NAME…] | upgrade [VERSION…] | bad-upgrades [WAY…] | power-cuts [N] | packed [FORMAT…]. The last line of the latter five is one JSON object.
[doc('Three virtual machines: up | down | status | console NODE | ssh NODE | power-cut NODE | pause NODE [SECONDS] | test | upgrade | …')]
trio *args: setup
    @case "${1:-}" in up | test | upgrade | bad-upgrades | power-cuts | packed) {{ just_executable() }} binaries ;; *) [ -x {{ trio }} ] || {{ just_executable() }} binaries ;; esac
    @[ "${1:-}" != packed ] || ova/dist --service lab
    @if [ "${1:-}" = test ]; then tests/trio/run "${@:2}"; else {{ trio }} "$@"; fi

# Fuzz a parser of bytes from a socket or a file, or each in turn: fuzz [TARGET [SECONDS]]. Needs cargo-fuzz and a C++ compiler.
fuzz *args:
    @for target in ${1:-$(ls fuzz/seeds)}; do \
        mkdir --parents "fuzz/corpus/$target"; \
        RUSTC_BOOTSTRAP=1 cargo fuzz run "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- "-max_total_time=${2:-60}" || exit 1; \
    done

# Measure: handover | failover | faults | proxy | idle | forged | boot. The last line is one JSON object. (What is measured is what the
# image holds, and how that is compiled.)
[doc('Measure: handover | failover | faults | proxy | idle | forged | boot. The last line is one JSON object.')]
bench *args: root binaries
    @if [ "${1:-}" = boot ]; then {{ trio }} bench "$@"; \
    else programs=$(image/build programs); TRILITH_LAB_PROGRAMS=$programs {{ lab }} bench "$@"; fi

# Foreign programs judge: cloud-init our first boot, document by document; COT, virt-v2v, qemu-img, libvirt and more what `dist` makes.
# Each part's last line is one JSON object.
[doc("Foreign programs judge our first boot, and what `dist` makes.")]
conformance *args: setup
    cargo build --workspace --bin trilith
    @image/build run python3 tests/conformance/firstboot/judge.py target/debug/trilith
    @tests/conformance/ova/run "$@"

# Build the appliance's disk, build/image/trilith.raw, and say what takes the room. The last line is one JSON object.
image: setup
    @image/build disk
    @image/build run image/weigh build/image

# Pack the disk for vSphere, Hyper-V and KVM into build/dist. The last line is one JSON object.
dist *args: setup
    @ova/dist "$@"

# What three machines are told at their first boot: seed SET.TOML [DIRECTORY]; without a directory it is only checked.
seed *args:
    @cargo run --quiet --package trilith-ova --bin trilith-seed -- "$@"

# Build the disk twice from nothing and compare the bytes. The last line is one JSON object.
image-twice: setup
    @image/twice

# Build the disk of the mirrors' newest packages and record their versions in image/packages.lock.
image-update: setup
    @image/build update

# Make a bundle of the image without services, build/trilith-VERSION.bundle (with services: `dist --service NAME`): bundle [--notes FILE] [--floor VERSION] [--min-version VERSION] [--expires UTC].
bundle *args: image
    @build/mkbundle make --keys "${TRILITH_KEYS:-build/keys}" --output build "$@" os build/image

# Build the appliance's root tree into build/root (nothing to do when no input changed).
root: setup
    @image/build root

# Build all programs.
binaries:
    cargo build --release --workspace

# Record the scenario transcripts and golden files anew; read the diff as a design review.
bless:
    TRILITH_BLESS=1 cargo test --workspace --quiet

# Format the code.
fmt:
    cargo fmt --all
