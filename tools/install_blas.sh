#!/usr/bin/env bash
# Makes sure that MLX finds an optimised BLAS on Linux CPUs (mtpd_mlx/model/blas.py says why).
#   install_blas.sh PREFIX      PREFIX: the virtual environment, for when the system cannot be changed
set -uo pipefail
prefix=${1:?usage: install_blas.sh PREFIX}
[ "$(uname -s)" = Linux ] || exit 0
source=$(cd "$(dirname "$0")/.." && pwd)
found() {
  PYTHONPATH="$source" "$prefix/bin/python" -c \
    'import sys; from mtpd_mlx.model.blas import preload_blas as p; r = p(); sys.exit(r.needed and r.library is None)' 2>/dev/null
}
[ -x "$prefix/bin/python" ] || { echo "warning: no Python in $prefix/bin: no BLAS looked for" >&2; exit 0; }
found && { echo "optimised BLAS: found"; exit 0; }

if command -v apt-get >/dev/null; then
  if [ "$(id -u)" = 0 ]; then
    apt-get install -y -q libopenblas0-pthread >/dev/null 2>&1 ||
      { apt-get update -q >/dev/null 2>&1; apt-get install -y -q libopenblas0-pthread >/dev/null 2>&1; }
    found && { echo "optimised BLAS: installed libopenblas0-pthread"; exit 0; }
  fi
  # Without root: unpack the packages beside the environment's other libraries.
  work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
  if (cd "$work" && apt-get download -q libopenblas0-pthread libgfortran5 libquadmath0 >/dev/null 2>&1); then
    for package in "$work"/*.deb; do dpkg -x "$package" "$work/root"; done
    mkdir -p "$prefix/lib/mtpd-blas"
    find "$work/root" \( -name 'libopenblas*.so*' -o -name 'libgfortran*.so*' -o -name 'libquadmath*.so*' \) \
      -exec cp -a {} "$prefix/lib/mtpd-blas/" \;
    found && { echo "optimised BLAS: unpacked into $prefix/lib/mtpd-blas"; exit 0; }
  fi
fi
if "$prefix/bin/python" -m pip install -q mkl >/dev/null 2>&1 && found; then
  echo "optimised BLAS: installed mkl"; exit 0
fi
echo "warning: no optimised BLAS could be installed; MLX will be slow here (Debian/Ubuntu: apt install libopenblas0-pthread)" >&2
