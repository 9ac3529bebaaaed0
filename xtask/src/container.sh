# A service in a container of Docker's, with everything as Docker does it: saved in one, restored in another, saved there again.
# In mount and network namespaces of its own, where nothing of the machine's own containers is seen or changed.
#
# $1  directory with the unpacked packages (root), the file system of the container (rootfs.tar), and room to work
set -eu
here=$1
state=$(mktemp -d /tmp/crac-docker-XXXXXX)
unpacked="$here/root"
export PATH="$unpacked/usr/bin:$unpacked/usr/sbin:$PATH" DOCKER_HOST="unix://$state/docker.sock"
mkdir "$state/images"
# Docker 20.10 is content with one hierarchy of control groups, but not with a part of one.
mount -t cgroup2 none /sys/fs/cgroup
mount -t tmpfs none /run
dockerd --iptables=false --ip6tables=false --bridge=none --ip-forward=false --storage-driver=vfs --data-root "$state/data" \
    --exec-root /run/docker --pidfile /run/docker.pid --host "$DOCKER_HOST" >"$state/log" 2>&1 &
daemon=$!
finish() {
    docker ps --quiet | xargs --no-run-if-empty docker kill >/dev/null 2>&1 || true
    kill "$daemon" 2>/dev/null || true
    wait "$daemon" 2>/dev/null || true
    rm -rf "$state"
}
trap finish EXIT
tries=0
until docker version >/dev/null 2>&1; do
    tries=$((tries + 1))
    if [ "$tries" -gt 300 ] || ! kill -0 "$daemon" 2>/dev/null; then
        tail -n 5 "$state/log" >&2
        echo "container: not here: dockerd does not start"
        exit 0
    fi
    sleep 0.1
done
docker import "$here/rootfs.tar" crac:test >/dev/null
# The default limit of open files may be more than whoever runs this may set.
run="--network none --ulimit nofile=$(ulimit -Hn):$(ulimit -Hn) --volume $state/images:/images --workdir /tmp"
if ! docker run --rm $run crac:test /bin/true 2>"$state/refused"; then
    cat "$state/refused" >&2
    echo "container: not here: docker run does not work"
    exit 0
fi
# Everything before this line is about whether there are containers here; from here on a failure is one of crac's.
for user in 0 65534; do
    chown "$user" "$state/images"
    as="$run --user $user"
    docker run --rm $as crac:test /bin/crac doctor --dir /tmp >"$state/doctor" || { cat "$state/doctor" >&2; exit 1; }
    grep -q 'missing no-seccomp-filter *1 filter' "$state/doctor" || { echo "the profile is not in force" >&2; exit 1; }
    docker run --detach --name "first-$user" $as crac:test /bin/web-server --warm-mib 1 >/dev/null
    saved() {
        # Until it has its control socket there is no such service (3).
        tries=0
        until docker exec "$1" /bin/crac check web-server >/dev/null 2>&1; do
            tries=$((tries + 1))
            [ "$tries" -le 300 ] || { docker logs "$1" >&2; docker exec "$1" /bin/crac check web-server >&2; exit 1; }
            sleep 0.1
        done
        # The command may end with the container whose first process has been saved.
        docker exec "$1" /bin/crac checkpoint web-server --image "$2" >"$state/said" 2>&1 || true
        [ "$(docker wait "$1")" = 0 ] || { docker logs "$1" >&2; cat "$state/said" >&2; exit 1; }
    }
    saved "first-$user" "/images/1-$user.crac"
    docker run --detach --name "second-$user" $as crac:test /bin/crac restore "/images/1-$user.crac" >/dev/null
    saved "second-$user" "/images/2-$user.crac"
    # An image is a program.
    docker run --detach --name "third-$user" $as crac:test "/images/2-$user.crac" >/dev/null
    saved "third-$user" "/images/3-$user.crac"
    docker run --rm $as crac:test /bin/crac inspect "/images/3-$user.crac" | grep -i generation
done
echo "container: ok"
