#!/bin/bash
place=~/.tinker/vit-70ae8060
mkdir -p ~/.tinker

run() {
    trap '' HUP  # the connection may be lost
    set -e
    export XLA_FLAGS='--xla_a=1 --xla_b=2'
    source 'my env/bin/activate'
    set +e
    trap 'kill -TERM $child' TERM
    restarts=0
    while true; do
        tinker train --config=gs://bucket/runs/vit/launch/config.json --workdir=gs://bucket/runs/vit &
        child=$!
        wait $child
        code=$?
        while kill -0 $child 2>/dev/null; do  # it is saving: a signal ended the wait
            wait $child
            code=$?
        done
        # 143, 130: it was asked to stop, and has saved. Larger ones: a process was killed.
        if [ $code -le 130 ] || [ $code -eq 143 ] || [ $restarts -ge 3 ]; then break; fi
        restarts=$((restarts + 1))
        echo "exit code $code: starting again ($restarts of 3)"
    done
    echo $code > $place.code
}

if ! kill -0 "$(cat $place.pid 2>/dev/null)" 2>/dev/null; then
    echo 1 > $place.code
    run >> $place.log 2>&1 < /dev/null &
    echo $! > $place.pid
fi
tail --lines=20 --follow --pid="$(cat $place.pid)" $place.log | sed -u "s/^/[$(hostname)] /"
exit "$(cat $place.code)"
