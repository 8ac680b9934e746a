#!/usr/bin/env bash
# Runs on a TPU VM: installs qwenjax in ~/qwenjax/venv and mounts a bucket as ~/qwenjax/gcs. Safe to run again.
#
#   bash bootstrap_vm.sh SOURCE [BUCKET]
#
# SOURCE is qwenjax-source.tar.gz, a packed checkout whose constraints.txt pins everything, or what pip can install.
# `python -m qwenjax.cluster bootstrap` copies this file to every worker and calls it.
set -euo pipefail

source_=${1:?usage: bootstrap_vm.sh SOURCE [BUCKET]}
bucket=${2:-}
root=$HOME/qwenjax
gcsfuse=https://github.com/GoogleCloudPlatform/gcsfuse/releases/download/v3.8.0/gcsfuse_3.8.0_amd64.deb
mkdir -p "$root"

# The images have Python 3.10 or 3.12; constraints.txt was made on 3.11. uv brings the one we want.
export PATH="$HOME/.local/bin:$PATH"
if ! command -v uv >/dev/null; then
  python3 -m pip --version >/dev/null 2>&1 || { sudo apt-get update -q && sudo apt-get install -yq python3-pip; }
  PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
fi
[ -x "$root/venv/bin/python" ] || uv venv --quiet --python 3.11 "$root/venv"

if [ "$source_" = qwenjax-source.tar.gz ]; then
  rm -rf "$root/source"
  tar -xzf "$HOME/$source_" -C "$root"
  uv pip install --quiet --python "$root/venv/bin/python" --constraint "$root/source/constraints.txt" \
    --reinstall-package qwenjax "$root/source[tpu,vocab,gcs]"
else
  uv pip install --quiet --python "$root/venv/bin/python" "$source_"
fi

if [ -n "$bucket" ] && ! mountpoint -q "$root/gcs"; then
  if ! command -v gcsfuse >/dev/null; then
    deb=$(mktemp --suffix=.deb)
    curl -fsSL --retry 5 -o "$deb" "$gcsfuse"
    sudo apt-get install -yq fuse "$deb" || { sudo apt-get update -q && sudo apt-get install -yq fuse "$deb"; }
    rm -f "$deb"
  fi
  mkdir -p "$root/gcs"
  # No caching of names: a worker must see the files that another has just written. Checkpoints are renamed when whole.
  gcsfuse --implicit-dirs --rename-dir-limit=200000 --metadata-cache-ttl-secs=0 "$bucket" "$root/gcs"
fi

"$root/venv/bin/python" -c 'import jax, qwenjax; print(f"{jax.__version__=}")'
echo "$(hostname): qwenjax is installed in $root${bucket:+, gs://$bucket is $root/gcs}"
