# What kvm.sh and vsphere.sh have in common; they read it, nobody runs it.
# shellcheck shell=bash

# common FIRST-ARGUMENTS: sets dry, what, seed, image, plan. `wanted` is the table of set.toml that the script goes by.
common() {
    local wanted=$1
    shift
    dry=
    [ "${1:-}" != --dry-run ] || { dry=yes; shift; }
    what=${1:-} seed=${2:-} image=${3:-}
    case $what in
        up) [ $# = 3 ] || usage ;;
        down) [ $# = 2 ] || usage ;;
        # It changes nothing that a dry run could leave out.
        status) [ "$#$dry" = 2 ] || usage ;;
        *) usage ;;
    esac
    plan=$seed/deploy.json
    needs jq
    [ -r "$plan" ] || fail 66 "there is no $plan: make it by 'trilith-seed set.toml $seed'"
    [ "$(jq '.nodes | length > 0' "$plan" 2> /dev/null)" = true ] || fail 65 "$plan is damaged: run trilith-seed again"
    [ "$(value ".$wanted")" != null ] || fail 65 "set.toml has no [$wanted]: add it, then run trilith-seed again"
    [ "$what" != up ] || { [ -f "$image" ] && [ -r "$image" ]; } || fail 66 "there is no file $image"
}

# each FUNCTION FIELD: calls it for every node, with the machine's name, the node's, and that field of the plan.
each() {
    local function=$1 machine name field
    # By another descriptor, because what is called may read its standard input.
    while IFS=$'\t' read -r machine name field <&3; do
        "$function" "$machine" "$name" "$field"
    done 3< <(jq --raw-output ".nodes[] | [.machine, .name, .$2] | @tsv" "$plan")
}

# The set answers when its first VIP takes a connection on its first service's port.
wait_for_set() {
    local vip port since=$SECONDS
    vip=$(value '.vips[0]')
    port=$(value .port)
    if [ -n "$dry" ]; then
        say "would wait for $vip port $port"
        return
    fi
    say "waiting for $vip port $port, for at most $deadline_s seconds"
    until timeout 2 bash -c "exec 3<> '/dev/tcp/$vip/$port'" 2> /dev/null; do
        [ $((SECONDS - since)) -lt "$deadline_s" ] ||
            fail 75 "$vip port $port does not answer: look at the nodes' consoles, which say what is wrong"
        sleep 1
    done
    say "$vip port $port answers, after $((SECONDS - since)) seconds"
}

value() { jq --raw-output "$1" "$plan"; }

needs() {
    local tool
    for tool in "$@"; do
        command -v "$tool" > /dev/null || fail 69 "$tool is not installed"
    done
}

# Runs a command, or says what would be run.
run() {
    if [ -n "$dry" ]; then
        echo "+ ${*@Q}"
    else
        "$@"
    fi
}

say() { echo "$*" >&2; }

fail() {
    say "${0##*/}: ${*:2}"
    exit "$1"
}

# The first lines of the script itself.
usage() {
    sed --quiet '2,/^set/s/^# \{0,1\}//p' "$0" >&2
    exit 64
}

# A first boot takes some seconds on hardware of today, a minute on a host that is loaded.
readonly deadline_s=300
