# One image for every process of Tailrace; docker-compose.yml says which process each container is.

FROM python:3.12-slim AS build
ENV UV_PYTHON_DOWNLOADS=never UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_NO_CACHE=1
WORKDIR /src

# uv comes from the lock like all the rest: its lines are cut out of it for pip, which checks the hash.
COPY requirements.lock pyproject.toml ./
RUN awk '/^[^ #]/ { mine = /^uv==/ } mine' requirements.lock > /tmp/uv.lock \
    && pip install --no-cache-dir --require-hashes -r /tmp/uv.lock \
    && uv venv --python /usr/local/bin/python /opt/tailrace

# The project's own dependencies and theirs, in the lock's versions, each with its hash. What tests, linters and the
# local model need is in the lock too, and stays out.
RUN uv pip install --python /opt/tailrace/bin/python --no-build --require-hashes \
        --constraint requirements.lock --requirements pyproject.toml --extra s3

COPY README.md LICENSE ./
COPY schemas schemas
COPY stores stores
COPY producers producers
COPY consumers consumers
COPY workers workers
COPY gateway gateway
COPY tailrace tailrace
COPY migrations migrations
RUN uv build --wheel --require-hashes --build-constraint requirements.lock \
        --python /usr/local/bin/python --out-dir /tmp/wheel \
    && uv pip install --python /opt/tailrace/bin/python --no-deps /tmp/wheel/*.whl


FROM python:3.12-slim
# A new volume takes over whose the folder is that it is mounted on.
RUN useradd --uid 10001 --create-home --home-dir /var/lib/tailrace --shell /usr/sbin/nologin tailrace \
    && install --directory --owner=tailrace --group=tailrace --mode=700 /var/lib/tailrace/files
COPY --from=build /opt/tailrace /opt/tailrace
ENV PATH=/opt/tailrace/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    TAILRACE_HOME=/var/lib/tailrace
WORKDIR /var/lib/tailrace
USER 10001:10001
EXPOSE 8080
CMD ["tailrace", "--help"]
