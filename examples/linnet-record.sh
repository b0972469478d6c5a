#!/bin/sh
# Record a camera into a folder, for as long as the machine has power: what linnet-record.service runs.
#
#     linnet-record.sh FOLDER SOURCE [options of `linnet record`]
#
# A recording grows in FOLDER/open and moves to FOLDER/done when it has ended. What still lies in `open` at the start
# was cut off by a crash or by the power: every tile in it that was written is carried over to `done`.
set -eu
folder=$1
source=$2
shift 2
mkdir -p "$folder/open" "$folder/done"

for cut in "$folder"/open/*.lnt; do
    [ -e "$cut" ] || continue
    whole=$folder/done/$(basename "$cut")
    if linnet recover "$cut" "$whole"; then
        sync "$whole" "$folder/done" # on the disk for good before the other one goes
        rm "$cut"
    else
        mv "$cut" "$cut.unreadable" # nothing whole is in it, not even the header
    fi
done

# Signals reach linnet by themselves (the unit's whole group gets them); it finishes the frame and writes the index.
trap : TERM INT
name=$(date -u +%Y%m%dT%H%M%SZ).lnt
status=0
linnet record "$source" "$folder/open/$name" "$@" || status=$?
if [ "$status" = 0 ]; then
    mv "$folder/open/$name" "$folder/done/$name"
fi
exit "$status"
