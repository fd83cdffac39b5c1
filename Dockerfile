# The image of all programs: injected containers, node proxy and injector.
FROM rust:1-bookworm AS build
RUN apt-get update && apt-get install --yes --no-install-recommends \
  libcap2-bin libclang-14-dev libibverbs-dev libmnl-dev libnftnl-dev librdmacm-dev pkg-config
WORKDIR /src
COPY . .
RUN cargo build --locked --release -p rdmesh-proxy -p rdmesh-injector \
  && install -D -t /out/usr/bin target/release/rdmesh-proxy target/release/rdmesh-injector \
  # The sidecar runs as a user other than root, who has only what the file permits.
  && setcap cap_net_raw=p /out/usr/bin/rdmesh-proxy

FROM debian:bookworm-slim
RUN apt-get update && apt-get install --yes --no-install-recommends \
  ibverbs-providers libibverbs1 libmnl0 libnftnl11 \
  && rm -rf /var/lib/apt/lists/*
COPY --from=build /out /
USER 15701:15701
