#!/bin/sh
# Copies programs, directories and everything that the dynamic linker adds to them below a new root:
#   collect.sh NEW_ROOT PATH...
set -eu
root=$1
shift

take() { # a file by its own name, in its real directory (/lib is a link to usr/lib); links become files
  directory=$(realpath "$(dirname "$1")")
  mkdir -p "$root$directory"
  [ -e "$root$directory/${1##*/}" ] || cp -L "$1" "$root$directory/"
}

libraries() {
  ldd "$1" 2>/dev/null | awk '$2 == "=>" && $3 ~ /^\// { print $3 } $1 ~ /^\// { print $1 }'
}

for path in "$@"; do
  if [ -d "$path" ]; then
    mkdir -p "$root$path"
    cp -a "$path/." "$root$path"
    find "$path" -type f \( -perm -100 -o -name '*.so' \) > /tmp/programs
  else
    take "$path"
    echo "$path" > /tmp/programs
  fi
  while read -r program; do
    for library in $(libraries "$program"); do
      take "$library"
    done
  done < /tmp/programs
done
rm -f /tmp/programs
