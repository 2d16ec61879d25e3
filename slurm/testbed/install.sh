#!/usr/bin/env bash
# Installs what the test cluster needs (packages.txt) from the distribution: Debian 12, Ubuntu 24.04. Run as root.
# The packages' own services are neither configured nor needed: start.sh runs its own daemons.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mapfile -t packages < <(grep -v '^#' "$here/packages.txt")
if [ "$(id -u)" -ne 0 ]; then
  echo "install.sh: needs root: sudo $0" >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y --no-install-recommends "${packages[@]}"
