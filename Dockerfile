# docker build -t registry.example.org/fairway:v0.1.0 --build-arg VERSION=v0.1.0 .

FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY agent agent
COPY cmd cmd
COPY proxy proxy
COPY routes routes
ARG VERSION=development
RUN CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=${VERSION}" -o /out/fairway ./cmd/fairway

# The image brings its own iptables, so rules are written and read in one spelling on every host. Debian's package
# holds both variants, legacy and nft; the agent finds out which one its host uses. Connection tracking is spoken to
# directly, so there is no need for the conntrack command.
FROM debian:bookworm-slim
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ca-certificates iptables \
 && rm -rf /var/lib/apt/lists/*
COPY --from=build /out/fairway /usr/local/bin/fairway
ARG VERSION=development
LABEL org.opencontainers.image.title="fairway" \
      org.opencontainers.image.description="Pod routes and Service rules for a Kubernetes node" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
# Stays uid 0: the capabilities that the manifests leave (NET_ADMIN, NET_RAW) take effect for the programs that the
# agent runs, iptables among them, only for uid 0; there is nothing else that root could do with them.
USER 0:0
ENTRYPOINT ["/usr/local/bin/fairway"]
