#!/bin/sh
# Make .venv ready on a fresh Debian or Ubuntu: Python's venv module, the system libraries that Qt and OpenGL
# load, and the project with its locked dependencies. Usage: scripts/setup.sh VENV QT_EXTRA
set -eu

venv=$1
qt=$2
python=${PYTHON:-python3}

say() { printf '%s\n' "$*"; }

# Install Debian packages if we may; else say the one line that does, and stop.
need() {
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "Installing system packages: $*"
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
    else
        say "System packages are missing. Install them, then run make again:"
        say "    sudo apt-get install -y $*"
        exit 1
    fi
}

command -v "$python" >/dev/null || need python3 python3-venv
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    say "Python 3.11 or newer is needed; $python is $("$python" -V 2>&1). Name another one: make PYTHON=python3.12"
    exit 1
}
"$python" -c 'import ensurepip, venv' 2>/dev/null || need python3-venv

# What the Qt and OpenGL wheels load but don't bring, as "library:package".
libraries="
libGL.so.1:libgl1 libEGL.so.1:libegl1 libOpenGL.so.0:libopengl0 libglib-2.0.so.0:libglib2.0-0
libfontconfig.so.1:libfontconfig1 libdbus-1.so.3:libdbus-1-3 libxkbcommon-x11.so.0:libxkbcommon-x11-0
libxcb-cursor.so.0:libxcb-cursor0 libxcb-icccm.so.4:libxcb-icccm4 libxcb-image.so.0:libxcb-image0
libxcb-keysyms.so.1:libxcb-keysyms1 libxcb-randr.so.0:libxcb-randr0 libxcb-render-util.so.0:libxcb-render-util0
libxcb-shape.so.0:libxcb-shape0 libxcb-xinerama.so.0:libxcb-xinerama0 libxcb-xkb.so.1:libxcb-xkb1
"
if [ "$(uname -s)" = Linux ]; then
    known=$(PATH="$PATH:/sbin:/usr/sbin" ldconfig -p)
    missing=""
    for pair in $libraries; do
        case "$known" in
            *"${pair%%:*}"*) ;;
            *) missing="$missing ${pair##*:}" ;;
        esac
    done
    # The tests, and the demo without a display, draw under Xvfb; Mesa's renderer stands in for a graphics card.
    command -v xvfb-run >/dev/null || missing="$missing xvfb xauth"
    if [ -z "${DISPLAY:-}${WAYLAND_DISPLAY:-}" ]; then
        [ -n "$(find /usr/lib -name 'swrast_dri.so' -o -name 'libgallium*.so' 2>/dev/null | head -n 1)" ] \
            || missing="$missing libgl1-mesa-dri"
        [ -d /usr/share/fonts/truetype ] || missing="$missing fonts-dejavu-core"
    fi
    # Word splitting is meant: one argument a package.
    # shellcheck disable=SC2086
    [ -z "$missing" ] || need $missing
fi

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
say "Installing the project into $venv (a few minutes the first time)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint "requirements/lock-$qt.txt" --editable ".[$qt,dev]"
