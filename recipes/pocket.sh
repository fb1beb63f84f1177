#!/usr/bin/env bash
# Train the pocket model from nothing: data, towers, the stages in order, the packed model, its figures and its card.
# Usage: recipes/pocket.sh FOLDER. Stop it at any moment; the same command goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
work=${1:?usage: recipes/pocket.sh FOLDER}
data=$work/stickers
run=$work/run
model=$work/pocket
mkdir -p "$work"

[ -d "$data" ] || gouache data build stickers "$data" --size 128
# train OUT CONFIG STAGE MINUTES
train() { gouache train "$3" --config "$2" --data "$data" --out "$1" --minutes "$4"; }

# The text tower that knows Chinese too, and the judge, which shares no trained weight with the model.
train "$work/towers" recipes/towers.toml clip 10
train "$work/judge" recipes/judge.toml clip 60

# The model listens to the tower that was trained here.
config=$work/pocket.toml
sed "s|^\[text\]$|[text]\nfolder = \"$(realpath "$work")/towers/clip/last-text\"|" recipes/pocket.toml > "$config"
train "$run" "$config" vae 150
train "$run" "$config" tokens 30
train "$run" "$config" prior 300
train "$run" "$config" denoiser 300
train "$run" "$config" upscaler 60

[ -d "$model" ] || gouache pack "$run" "$model" --config "$config" --int8 unet,vae,text_encoder,prior,quantizer,upscaler \
    --styles noto,twemoji,flat,3d --synonyms "$data" --licence Apache-2.0
gouache eval "$model" --data "$data" --judge "$work/judge/clip/last.safetensors" \
    --json "$work/eval.json" --sheet "$work/eval.png"
gouache card "$model" --data "$data" --run "$work/towers" --run "$run" --config recipes/pocket.toml \
    --eval "$work/eval.json" --words recipes/pocket_card.md
