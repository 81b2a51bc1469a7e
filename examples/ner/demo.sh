#!/bin/sh
# The five steps of README.md here, one after the other, on free ports: `make demo-ner`.
#
#     examples/ner/demo.sh BUILT FOLDER       where cargo has built to; where the model's files go
set -eu
built=$1
folder=$2
scratch=$(mktemp -d)
server=
end() {
    if [ -n "$server" ]; then kill "$server" 2>/dev/null || true; fi
    rm -rf "$scratch"
}
trap end EXIT

echo '1. the model: examples/ner/model.rs, built as a plugin'
ls "$built"/examples/libner.* | grep -v '\.d$'
echo '2. its proxy'
"$built/examples/ner-dump" "$folder"
echo '3. the run-script directory'
"$built/mdm-model" list "$folder"
echo '4. the server'
"$built/mdm-server-start" --port 0 --port-out 0 --num-worker 2 --device-map -1 --run-script-dir "$folder" \
    --zeromq-sock-tmp-dir "$scratch" --logger "$scratch/log.txt" >"$scratch/ready" 2>"$scratch/errors" &
server=$!
until grep -q '^ready ' "$scratch/ready"; do
    kill -0 "$server" 2>/dev/null || { cat "$scratch/errors" >&2; exit 1; }
    sleep 0.1
done
cat "$scratch/ready"
port=$(sed -n 's/^ready port=\([0-9]*\) .*/\1/p' "$scratch/ready")
echo '5. the client'
"$built/examples/ner-client" --server "tcp://localhost:$port" --check

"$built/mdm-server-terminate" --port "$port"
wait "$server"
server=
echo stopped
