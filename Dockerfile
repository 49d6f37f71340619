# A node in a container, for amd64 and arm64. It needs no secret: the first start makes the key, in the volume.
#
#   docker build -t infernet .
#   docker run -d -p 46337:46337 -v infernet:/var/lib/infernet \
#     -e INFERNET_CONTROL_PLANE_URL=https://coordinator.example -e INFERNET_NODE_NAME=my-node infernet
#
# Without INFERNET_CONTROL_PLANE_URL (or INFERNET_COORDINATOR_URL) the node has no coordinator. Every other setting is a
# variable, too: `infernet config show` lists them. `docker run infernet VERB` runs another verb of the program.
ARG PYTHON=python:3.13-slim-bookworm

FROM ${PYTHON} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_NO_INPUT=1
RUN python -m venv /usr/local/lib/infernet
WORKDIR /src
# Dependencies first, so that a change of the program leaves their layer as it is. What builds those few that are source
# only comes before them.
COPY requirements/build.txt requirements/base.txt requirements/llama.txt requirements/
RUN /usr/local/lib/infernet/bin/python -m pip install --no-deps --require-hashes -r requirements/build.txt \
    && /usr/local/lib/infernet/bin/python -m pip install --no-deps --no-build-isolation --use-pep517 --require-hashes \
    -r requirements/base.txt -r requirements/llama.txt
COPY pyproject.toml README.md LICENSE ./
COPY protocol protocol
COPY infernet infernet
COPY coordinator coordinator
RUN /usr/local/lib/infernet/bin/python -m pip install --no-deps --no-build-isolation --no-index .

FROM ${PYTHON}
# Of the system the embedded engine needs one library. Its version is that of the base image's release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 libstdc++6 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --home-dir /var/lib/infernet --shell /usr/sbin/nologin infernet \
    && install -d -m 700 -o infernet -g infernet /var/lib/infernet
COPY --from=build /usr/local/lib/infernet /usr/local/lib/infernet
COPY --chmod=755 packaging/docker/entrypoint /usr/local/bin/infernet-container
RUN ln -s /usr/local/lib/infernet/bin/infernet /usr/local/lib/infernet/bin/infernet-coordinator /usr/local/bin/
ENV INFERNET_HOME=/var/lib/infernet
USER 10001
VOLUME /var/lib/infernet
EXPOSE 46337/tcp
# The first start fetches a model before the node is up.
HEALTHCHECK --interval=30s --timeout=10s --start-period=300s --retries=3 CMD ["infernet", "status", "--json"]
# The first signal lets jobs finish, for 30 seconds: `docker stop -t 40` waits for that.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/infernet-container"]
