# CPU image whose entry point is the commands. It needs no network, no root and no writable file system but /tmp:
#   docker build -t spineclue_v2 .
#   docker run --rm --network none --read-only --tmpfs /tmp spineclue_v2                   a synthetic spine, labelled
#   docker run --rm --network none --read-only --tmpfs /tmp -u "$(id -u):$(id -g)" -v "$PWD/scans:/in:ro" -v "$PWD/results:/out" \
#     spineclue_v2 predict -i /in -o /out
# The first word names the command: `predict` is spineclue_predict. The service: compose.yaml.
# PyPI's torch for Linux brings CUDA's libraries, several GB. For a small image, name the index with PyTorch's CPU wheels:
#   docker build --build-arg PIP_EXTRA_INDEX_URL=URL -t spineclue_v2 .
# Whoever passes this image on passes on ultralytics, too: AGPL-3.0, see NOTICE.
# Another base needs Debian's packages, Python 3.10 or newer with pip, and both under the names `python` and `pip`.
ARG BASE=python:3.11-slim
# hadolint ignore=DL3006
FROM ${BASE}

# OpenCV, which ultralytics imports, needs both. Debian keeps no old versions that could be asked for.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*

ARG PIP_EXTRA_INDEX_URL=""
WORKDIR /opt/spineclue_v2
COPY . .
RUN pip install --no-cache-dir -c constraints.txt '.[dicom,tables,serve]' \
    && useradd --create-home --uid 1000 spineclue \
    && install -d -m 1777 /work

# Any user id can run it: settings and caches of the libraries, and uploads, go to /tmp, which is there in every container.
ENV HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    YOLO_CONFIG_DIR=/tmp/ultralytics \
    PYTHONDONTWRITEBYTECODE=1
USER 1000:1000
WORKDIR /work
ENTRYPOINT ["python", "-m", "spineclue_v2.cli"]
CMD ["demo", "-o", "/tmp/demo"]
