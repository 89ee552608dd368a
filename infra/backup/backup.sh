#!/bin/sh
# Prefect's database, every branch and tag of the repository, and all of DVC's remote that they name. See README.md.
#   backup.sh FOLDER     FOLDER is replaced whole, once all of it is there and can be read
# PREFECT_DATABASE  postgresql://user@host/prefect; its password by PGPASSWORD or ~/.pgpass
# REPOSITORY        the bare repository that runs push to
# STORE, COPY       DVC's remotes: that of the releases, and the second one, in another place
# CACHE             optional: a folder that keeps the objects, so that each is fetched once
# TEXTFILE          optional: where node_exporter's textfile collector finds the time of the last backup
set -eu
test $# = 1 || { echo "usage: backup.sh FOLDER" >&2; exit 2; }
: "${PREFECT_DATABASE:?of Prefect, such as postgresql://prefect@127.0.0.1/prefect}"
: "${REPOSITORY:?that runs push to}" "${STORE:?the remote of DVC with the releases}" "${COPY:?the remote of DVC to copy to}"
mkdir -p "$(dirname "$1")"
folder=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
new="$folder.new"
rm -rf "$new"
trap 'rm -rf "$new"' EXIT
mkdir -m 700 "$new"

pg_dump --format=custom --no-owner --no-privileges --file="$new/prefect.dump" "$PREFECT_DATABASE"
pg_restore --list "$new/prefect.dump" | grep -q "TABLE DATA public flow_run " || { echo "no flow_run in the dump" >&2; exit 1; }

git clone --quiet --mirror "$REPOSITORY" "$new/mirror"
git -C "$new/mirror" bundle create --quiet "$new/repository.bundle" --all
git -C "$new/mirror" bundle verify --quiet "$new/repository.bundle" 2> /dev/null
rm -rf "$new/mirror"

# What branches name is copied where it is there; of each version all of its own line must be. Its lock file names other
# lines, too, of which nobody may have published anything. DVC only warns of an object that is missing: its status is asked.
git clone --quiet "$new/repository.bundle" "$new/clone"
(
  cd "$new/clone"
  dvc remote add --quiet --local backup-from "$STORE"
  dvc remote add --quiet --local backup-to "$COPY"
  dvc config --local cache.dir "${CACHE:-$new/cache}"
  dvc fetch --quiet --remote backup-from --all-branches --all-tags
  dvc push --quiet --remote backup-to --all-branches --all-tags
  for tag in $(git tag --list '*@v*'); do
    git checkout --quiet "$tag"
    said=$(dvc status --cloud --remote backup-to --with-deps "bundle@${tag%%@*}" 2>&1)
    # Of a folder whose list is nowhere DVC warns, and says that all is in sync.
    case "$said" in
      *Missing*) ;;
      *"in sync"*) continue ;;
    esac
    echo "$said" >&2
    echo "$STORE: not all that $tag names is there" >&2
    exit 1
  done
)
rm -rf "$new/clone" "$new/cache"

(cd "$new" && sha256sum prefect.dump repository.bundle > SHA256SUMS)
rm -rf "$folder.old"
test ! -e "$folder" || mv "$folder" "$folder.old"
mv "$new" "$folder"
rm -rf "$folder.old"
if test -n "${TEXTFILE:-}"; then
  echo "ctfoundry_backup_time_seconds $(date +%s)" > "$TEXTFILE.new"
  chmod 644 "$TEXTFILE.new" && mv "$TEXTFILE.new" "$TEXTFILE"
fi
