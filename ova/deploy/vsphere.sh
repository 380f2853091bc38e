#!/usr/bin/env bash
# Three nodes on vSphere, by govc: vsphere.sh [--dry-run] up|down|status SEED [OVA]
#
#   export GOVC_URL=vcenter.example.org GOVC_USERNAME=… GOVC_PASSWORD=…
#   trilith-seed set.toml seed
#   vsphere.sh up seed trilith-0.1.0.ova      imports and starts what is missing, keeps the nodes on different hosts,
#                                             waits until the set answers
#   vsphere.sh status seed
#   vsphere.sh down seed                      removes the machines, their disks and the rule
#
# Does nothing twice: what is there already stays as it is. --dry-run prints what would be done and asks vCenter nothing.
# Needs govc (github.com/vmware/govmomi) and jq.
set -euo pipefail

# shellcheck source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

main() {
    common vsphere "$@"
    datacenter=$(value .vsphere.datacenter)
    cluster=$(value .vsphere.cluster)
    folder=$(value .vsphere.folder)
    rule=trilith-$(value .set)
    if [ -z "$dry" ]; then
        needs govc
        govc about > /dev/null || fail 69 "vCenter does not answer: set GOVC_URL, GOVC_USERNAME and GOVC_PASSWORD"
    fi
    case $what in
        up)
            each import_node datastore
            keep_apart
            each start_node datastore
            wait_for_set ;;
        down)
            each remove_node datastore
            if [ "$(value .vsphere.anti_affinity)" = true ] && has_rule; then
                run govc cluster.rule.remove -dc "$datacenter" -cluster "$cluster" -name "$rule"
            fi ;;
        status) each status_node datastore ;;
    esac
}

import_node() {
    local machine=$1 name=$2 datastore=$3
    if is_there "$machine"; then
        say "$machine is there already"
        return
    fi
    # An upload that breaks off can leave a machine with half a disk, which the next `up` would take for whole.
    half=$machine
    trap drop_half EXIT
    run govc import.ova -dc "$datacenter" -ds "$datastore" -pool "$cluster/Resources" ${folder:+-folder "$folder"} \
        -options "$seed/$name.govc.json" "$image"
    trap - EXIT
}

drop_half() {
    say "$half is not imported"
    remove_node "$half" || say "vCenter keeps what there is of $half: remove it before the next up"
}

# A rule needs all its machines, so it comes after the imports and before the first start.
keep_apart() {
    local machines machine whole=yes members
    [ "$(value .vsphere.anti_affinity)" = true ] || return 0
    mapfile -t machines < <(value '.nodes[].machine')
    if has_rule; then
        # vCenter takes a machine that is removed out of its rule. Where it has not, govc can't name the rule's machines.
        if [ -z "$dry" ]; then
            members=$(govc cluster.rule.ls -dc "$datacenter" -cluster "$cluster" -name "$rule") || members=
            for machine in "${machines[@]}"; do
                grep --quiet --line-regexp --fixed-strings "$machine" <<< "$members" || whole=
            done
        fi
        if [ -n "$whole" ]; then
            say "the rule $rule is there already"
            return
        fi
        run govc cluster.rule.remove -dc "$datacenter" -cluster "$cluster" -name "$rule"
    fi
    run govc cluster.rule.create -dc "$datacenter" -cluster "$cluster" -name "$rule" -enable -anti-affinity "${machines[@]}"
}

start_node() {
    local machine=$1 state=
    [ -n "$dry" ] || look "$machine"
    if [ "$state" = poweredOn ]; then
        say "$machine runs already"
    else
        run govc vm.power -dc "$datacenter" -on "$machine"
    fi
}

remove_node() {
    local machine=$1
    if is_there "$machine"; then
        # It is switched off first.
        run govc vm.destroy -dc "$datacenter" "$machine"
    fi
}

status_node() {
    local machine=$1 state='not there'
    ! is_there "$machine" || look "$machine"
    printf '%s\t%s\n' "$machine" "$state"
}

# Whether vCenter knows it. A dry run asks nothing: for `up` nothing is there, for `down` everything.
is_there() {
    local found
    if [ -n "$dry" ]; then
        [ "$what" = down ]
    else
        found=$(govc find -dc "$datacenter" . -type m -name "$1") || fail 69 "vCenter does not tell whether $1 is there"
        [ -n "$found" ]
    fi
}

has_rule() {
    local rules
    if [ -n "$dry" ]; then
        [ "$what" = down ]
    else
        rules=$(govc cluster.rule.ls -dc "$datacenter" -cluster "$cluster") ||
            fail 69 "vCenter does not tell the rules of $cluster; a host by itself has none: write anti_affinity = false under [vsphere]"
        grep --quiet --line-regexp --fixed-strings "$rule" <<< "$rules"
    fi
}

# Sets `state`, in vCenter's words. govc writes the types' names small since 0.31, its own since 0.32, and with capitals before.
look() {
    state=$(govc vm.info -dc "$datacenter" -json "$1" |
        jq --raw-output '(.virtualMachines // .VirtualMachines)[0] | (.runtime // .Runtime) | .powerState // .PowerState') ||
        fail 69 "vCenter does not tell the state of $1"
}

main "$@"
