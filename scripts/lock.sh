#!/bin/sh
# Write requirements/lock-QT.txt: the versions that a fresh install within pyproject's bounds gets today.
set -eu
qt=$1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"${PYTHON:-python3}" -m venv "$scratch/venv"
"$scratch/venv/bin/python" -m pip install --quiet --upgrade pip
"$scratch/venv/bin/python" -m pip install --quiet --editable ".[$qt,dev]"
{
    printf '# Versions of every dependency, made by `make lock`. Used as constraints: what a platform does not need stays out.\n'
    "$scratch/venv/bin/python" -m pip freeze --exclude-editable
} > "requirements/lock-$qt.txt"
