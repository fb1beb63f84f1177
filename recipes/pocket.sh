#!/usr/bin/env bash
# Train the pocket model from nothing: data, the stages in order, the packed model.
# Usage: recipes/pocket.sh FOLDER. Stop it at any moment; the same command goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
work=${1:?usage: recipes/pocket.sh FOLDER}
config=recipes/pocket.toml
data=$work/stickers
run=$work/run

[ -d "$data" ] || gouache data build stickers "$data" --size 128
train() { gouache train "$1" --config "$config" --data "$data" --out "$run" --minutes "$2"; }
train vae 150
train tokens 30
train prior 300
train denoiser 300
gouache pack "$run" "$work/pocket" --config "$config"
