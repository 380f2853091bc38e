#!/usr/bin/env bash
# Three nodes on KVM, by libvirt: kvm.sh [--dry-run] up|down|status SEED [QCOW2]
#
#   trilith-seed set.toml seed
#   kvm.sh up seed trilith-0.1.0.qcow2        defines and starts what is missing, waits until the set answers
#   kvm.sh status seed
#   kvm.sh down seed                          removes the machines and their disks
#
# Does nothing twice: what is there already stays as it is. --dry-run prints what would be done and asks libvirt nothing.
# Needs virsh (package libvirt-clients) and jq.
set -euo pipefail

# shellcheck source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

main() {
    common kvm "$@"
    pool=$(value .kvm.pool)
    [ -n "$dry" ] || needs virsh
    case $what in
        up)
            each up_node connect
            wait_for_set ;;
        down) each down_node connect ;;
        status) each status_node connect ;;
    esac
}

up_node() {
    local machine=$1 name=$2 connect=$3
    answers
    look "$machine"
    if [ "$state" != "$missing" ]; then
        say "$machine is defined already"
    else
        upload "$machine.qcow2" "$image" qcow2
        upload "$machine-seed.iso" "$seed/$name.iso" raw
        run virsh --connect "$connect" define --validate "$seed/$name.domain.xml"
    fi
    # It starts with its host, too.
    run virsh --connect "$connect" autostart "$machine"
    if [ "$state" = running ]; then
        say "$machine runs already"
    else
        run virsh --connect "$connect" start "$machine"
    fi
}

# A volume with a file's content. One without its machine was left when something failed: it is made anew.
upload() {
    local volume=$1 file=$2 format=$3
    if is vol-info "$volume" --pool "$pool"; then
        run virsh --connect "$connect" vol-delete "$volume" --pool "$pool"
    fi
    run virsh --connect "$connect" vol-create-as "$pool" "$volume" "$(stat --format=%s "$file")" --format "$format"
    run virsh --connect "$connect" vol-upload "$volume" "$file" --pool "$pool"
}

down_node() {
    local machine=$1 connect=$3 volume
    answers
    look "$machine"
    case $state in
        "$missing" | 'shut off') ;;
        # Also what is paused or crashed has its disk open.
        *) run virsh --connect "$connect" destroy "$machine" ;;
    esac
    if [ "$state" != "$missing" ]; then
        # The last three are for a machine that was saved, or that somebody has made snapshots of: it would stay.
        run virsh --connect "$connect" undefine "$machine" --nvram --managed-save --snapshots-metadata --checkpoints-metadata
    fi
    for volume in "$machine.qcow2" "$machine-seed.iso"; do
        if is vol-info "$volume" --pool "$pool"; then
            run virsh --connect "$connect" vol-delete "$volume" --pool "$pool"
        fi
    done
}

status_node() {
    local machine=$1 connect=$3
    answers
    look "$machine"
    printf '%s\t%s\n' "$machine" "$state"
}

# Stops here when the host does not answer: what it has must not be taken for missing.
answers() {
    [ -n "$dry" ] || virsh --connect "$connect" uri > /dev/null || fail 69 "libvirt at $connect does not answer"
}

# Whether libvirt knows it. A dry run asks nothing: for `up` nothing is there, for `down` everything. What is not there is told in
# words, and any other failure stops all.
is() {
    local said
    if [ -n "$dry" ]; then
        [ "$what" = down ]
    elif ! said=$(LC_ALL=C virsh --connect "$connect" "$@" 2>&1); then
        case $said in
            *'failed to get domain'* | *'failed to get vol'* | *'Domain not found'* | *'Storage volume not found'*) return 1 ;;
            *) fail 69 "virsh $1 $2 at $connect: $said" ;;
        esac
    fi
}

# Sets `state`, in libvirt's words.
look() {
    state=$missing
    if is dominfo "$1"; then
        state=running
        [ -n "$dry" ] || state=$(LC_ALL=C virsh --connect "$connect" domstate "$1") || fail 69 "virsh does not tell the state of $1"
    fi
}

readonly missing='not there'

main "$@"
