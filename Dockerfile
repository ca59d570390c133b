# CPU image. Its default command labels a synthetic spine with the shipped weights:
#   docker build -t spineclue_v2 . && docker run --rm spineclue_v2
# Own scans (results belong to the user that runs the container):
#   docker run --rm -u "$(id -u):$(id -g)" -v "$PWD/scans:/in:ro" -v "$PWD/results:/out" spineclue_v2 spineclue_predict -i /in -o /out
# PyPI's torch for Linux brings CUDA's libraries, several GB. For a small image, name the index with PyTorch's CPU wheels:
#   docker build --build-arg PIP_EXTRA_INDEX_URL=URL -t spineclue_v2 .
# Whoever passes this image on passes on ultralytics, too: AGPL-3.0, see NOTICE.
FROM python:3.11-slim

# OpenCV, which ultralytics imports, needs both.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*

ARG PIP_EXTRA_INDEX_URL=""
WORKDIR /opt/spineclue_v2
COPY . .
RUN pip install --no-cache-dir -c constraints.txt .

# Any user id can run it: settings and caches of the libraries go where everybody may write.
RUN useradd --create-home --uid 1000 spineclue
ENV HOME=/tmp/home \
    MPLCONFIGDIR=/tmp/home/matplotlib \
    YOLO_CONFIG_DIR=/tmp/home/ultralytics
RUN mkdir -p /tmp/home/matplotlib /tmp/home/ultralytics /work && chmod -R 1777 /tmp/home /work
USER spineclue
WORKDIR /work
CMD ["spineclue_demo"]
