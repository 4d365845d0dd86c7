# One image for everything: the hub (the default command), the nodes, and their set-up.
#
#     docker build --tag entrepot .
#
# Every package comes from requirements/image.txt, by version and hash; the project is built of this checkout with a
# locked build back end. No key, no token and no address goes into the image: state lives in volumes.

FROM python:3.12-slim AS build

WORKDIR /src
RUN python -m venv /opt/entrepot
COPY requirements/image.txt requirements/image.txt
RUN /opt/entrepot/bin/pip install --disable-pip-version-check --require-hashes --requirement requirements/image.txt
COPY pyproject.toml README.md LICENSE ./
COPY node node
COPY hub hub
RUN /opt/entrepot/bin/pip install --disable-pip-version-check --no-deps --no-build-isolation .

FROM python:3.12-slim

# A fixed number, so that volumes keep their owner from one image to the next. A new, empty volume takes over the
# owner and the mode of the folder that it is mounted on: hence the folders of docker-compose.yml.
RUN useradd --uid 10001 --create-home --home-dir /var/lib/entrepot --shell /usr/sbin/nologin entrepot \
    && install --directory --owner=entrepot --group=entrepot --mode=0755 /srv/bus \
    && install --directory --owner=entrepot --group=entrepot --mode=0700 /data /srv/bucket /srv/invites

COPY --from=build /opt/entrepot /opt/entrepot

# A volume belongs on /var/lib/entrepot. The hub's folder is one below it: the hub moves it into place as a whole,
# which a mount point does not allow.
ENV PATH=/opt/entrepot/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ENTREPOT_HOME=/var/lib/entrepot/node \
    ENTREPOT_HUB_HOME=/var/lib/entrepot/hub

USER entrepot
WORKDIR /var/lib/entrepot
EXPOSE 8480

# Of the hub: the database, the message bus and the buckets answer. Nodes have their own in docker-compose.yml.
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s --start-interval=1s --retries=3 \
    CMD ["entrepot-hub", "status", "--check"]

CMD ["entrepot-hub", "serve"]
