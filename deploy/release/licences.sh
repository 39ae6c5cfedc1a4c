#!/usr/bin/env bash
# The licences of everything that is in the binary, by the text of each module's LICENSE. A module whose licence is not one of those below, which ask
# for no more than a notice, fails. With --list it prints what it found. Offline: it reads the module cache.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
failed=0
while read -r module version dir; do
  [ -n "$dir" ] || continue
  file=$(find "$dir" -maxdepth 1 \( -iname '*licen[cs]e*' -o -iname 'copying*' \) | sort | head -n 1)
  text=$([ -z "$file" ] || tr -s '[:space:]' ' ' <"$file")
  case $text in
    *'Apache License'*'Version 2.0'*) licence=Apache-2.0 ;;
    *'Mozilla Public License'*) licence=MPL-2.0 ;; # file by file: unchanged use asks for nothing more
    *'Permission is hereby granted, free of charge'*) licence=MIT ;;
    *'Redistribution and use in source and binary forms'*) licence=BSD ;;
    *'Permission to use, copy, modify, and'*'distribute this software'*) licence=ISC ;;
    *'released into the public domain'*) licence=Unlicense ;;
    *) licence=unknown failed=1 ;;
  esac
  if [ "$licence" = unknown ] || [ "${1:-}" = --list ]; then printf '%-10s %s %s\n' "$licence" "$module" "$version"; fi
done < <(go list -deps -f '{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}} {{.Dir}}{{end}}{{end}}' ./cmd/kvtier | sort -u)
[ "$failed" = 0 ] || { echo "licences: look at the unknown ones, and add what is acceptable to $0"; exit 1; }
