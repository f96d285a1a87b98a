#!/usr/bin/env bash
# A local base image for the Dockerfile where no registry can be reached: Debian with Python and torch, as NVIDIA's
# PyTorch image promises them. torch is installed before, by no requirement of ours, as a pre-release (2.13.0a0+...);
# PIP_CONSTRAINT pins a package in a version that is too old for us; TransformerEngine and flash-attn are absent.
#   tests/containers/base.sh FOLDER      scratch space of about 3 GB; the image is localhost/openmath-base
# Needs root, debootstrap and buildah, a Debian mirror (MIRROR), and a place where pip finds torch.
set -euo pipefail
folder=${1:?which folder may be filled?}
mirror=${MIRROR:-http://deb.debian.org/debian}
root=$folder/root

if [ ! -e "$root/.made" ]; then
  rm -rf "$root"
  mkdir -p "$folder"
  # gcc is in NVIDIA's image, too: the embedded engine and triton compile with it.
  debootstrap --variant=minbase --include=ca-certificates,python3,python3-pip,python3-dev,gcc,libc6-dev,libgomp1 \
    bookworm "$root" "$mirror" >"$folder/debootstrap.log" || { tail "$folder/debootstrap.log"; exit 1; }
  # What this machine trusts and asks for names, for pip inside.
  cp /etc/resolv.conf "$root/etc/resolv.conf"
  cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
  ln -sf python3 "$root/usr/bin/python"
  "${PYTHON:-python3.11}" -m pip download --quiet --no-deps --dest "$folder/wheels" torch==2.13.0
  mkdir -p "$root/tmp/wheels"
  cp "$folder"/wheels/torch-2.13.0*.whl "$root/tmp/wheels/"
  chroot "$root" sh -c 'env -u PIP_FIND_LINKS PIP_BREAK_SYSTEM_PACKAGES=1 python -m pip install --quiet --no-cache-dir \
    --root-user-action=ignore /tmp/wheels/torch-*.whl numpy==2.3.5 pyarrow==18.1.0'
  rm -r "$root/tmp/wheels"
  # NVIDIA's torch is a pre-release by its number, which pip would replace if it were asked.
  chroot "$root" sh -c 'cd /usr/local/lib/python3.11/dist-packages && old=$(echo torch-*.dist-info) &&
    new=torch-2.13.0a0+standin.dist-info && mv "$old" "$new" && sed -i "s/^Version: .*/Version: 2.13.0a0+standin/" "$new/METADATA" &&
    sed -i "s|^$old|$new|" "$new/RECORD"'
  mkdir -p "$root/etc/pip"
  echo pyarrow==18.1.0 >"$root/etc/pip/constraint.txt"
  rm -rf "$root/var/lib/apt/lists" "$root/var/cache/apt"
  touch "$root/.made"
fi

container=$(buildah from scratch)
buildah add --quiet "$container" "$root" / >/dev/null
buildah config --env PIP_CONSTRAINT=/etc/pip/constraint.txt --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
  --env NVIDIA_VISIBLE_DEVICES=all --workingdir /workspace "$container"
buildah commit --quiet --rm "$container" localhost/openmath-base >/dev/null
echo "base: $(buildah inspect --type image --format '{{.FromImage}}' localhost/openmath-base), torch 2.13.0a0+standin"
