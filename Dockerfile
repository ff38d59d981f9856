# zcstored in a container: two static binaries and nothing else, not as root, no network needed.
#
#   docker build -t zcstore .
#   docker run -d --name zcstored --network none --shm-size 8g -v zcstore-socket:/run/zcstore zcstore
#
# How much shared memory: --shm-size is the size of the container's /dev/shm, and that is what it can store; the default is
# 64 MiB, which holds hardly any model. Give it the sum of your models plus a tenth. It is a limit, not an allocation. With
# --memory, make that larger than --shm-size by 256 MiB or more: stored weights count as this container's memory, and at
# that limit the kernel kills the daemon. In Kubernetes: an emptyDir with medium: Memory and a sizeLimit, mounted at
# /dev/shm (it counts towards the container's memory limit too).
#
# How other containers use it: they mount the volume with the socket, and nothing else. Weights come as open descriptors
# over the socket, so no --ipc=host, no --ipc=container:..., no shared /dev/shm, and a worker's own --shm-size does not matter:
#
#   docker run --user 65532:65532 -v zcstore-socket:/run/zcstore:ro -e ZCSTORE_SOCKET=/run/zcstore/zcstored.sock WORKER
#
# The socket is 0660, for uid and gid 65532. A worker with another uid joins with --group-add 65532, and names the daemon's
# user with -e ZCSTORE_SERVER_UID=65532: a client trusts root, its own uid, and who it is told. A directory of the
# host in place of the volume has to belong to 65532 first.
#
# /dev/shm goes with the container: `docker restart` keeps what is stored only if /dev/shm outlives it (a Kubernetes
# emptyDir does, --shm-size does not). Workers that are attached keep their pages either way.

FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -o /out/usr/local/bin/ ./cmd/zcstored ./cmd/zcctl
# The user has a name, for ps and for os/user; the directory of the socket is its own, also in a fresh volume.
RUN mkdir -p /out/etc /out/run/zcstore /out/tmp && chmod 1777 /out/tmp && chmod 0750 /out/run/zcstore && \
    echo 'zcstored:x:65532:65532:zcstore daemon:/:/nonexistent' >/out/etc/passwd && \
    echo 'zcstored:x:65532:' >/out/etc/group && \
    chown 65532:65532 /out/run/zcstore

FROM scratch
COPY --from=build /out/ /
USER 65532:65532
ENV PATH=/usr/local/bin \
    ZCSTORE_SOCKET=/run/zcstore/zcstored.sock
VOLUME /run/zcstore
# Open puts get ten seconds to finish after SIGTERM, which is also what docker stop waits: stop with `docker stop -t 20`.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=5s CMD ["/usr/local/bin/zcctl", "status"]
ENTRYPOINT ["/usr/local/bin/zcstored"]
