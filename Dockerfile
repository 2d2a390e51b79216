#   docker build -t imagegen .                              CPU, about 1.5 GB
#   docker build -t imagegen:cuda --build-arg TORCH=cuda .  NVIDIA GPU; needs the NVIDIA container toolkit to run
#
# TORCH_INDEX names another index of torch's CPU wheels than PyTorch's own. With a mirror, add --build-arg PIP_INDEX_URL=...

FROM python:3.11.15-trixie AS build
WORKDIR /build
# torch has its own layer, because it is large and changes seldom. The Makefile's rule reads these arguments. The build has
# no GPU, so that without TORCH it is the CPU's; and if that cannot be had, it fails instead of making a large image.
ARG TORCH=cpu
ARG TORCH_INDEX
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ENV PIP_CACHE_DIR=/var/cache/pip
COPY Makefile constraints.txt ./
RUN --mount=type=cache,target=/var/cache/pip \
    make torch VENV=/opt/imagegen PYTHON=/usr/local/bin/python3
COPY pyproject.toml README.md LICENSE ./
# torchvision: FLUX.2 dev and Qwen-Image-Edit read pictures with it. Both are too large for a CPU.
RUN --mount=type=cache,target=/var/cache/pip \
    /opt/imagegen/bin/pip install --constraint constraints.txt --build-constraint constraints.txt --only-deps . \
    && if [ "$TORCH" = cuda ]; then make torchvision VENV=/opt/imagegen; fi
COPY config ./config
COPY docs/errors ./docs/errors
COPY src ./src
# torch's own tests and the compiler of protocol buffers are never used, and its C++ headers only by `compile`, for which
# the image for the CPU has no compiler: 200 MB.
RUN --mount=type=cache,target=/var/cache/pip \
    /opt/imagegen/bin/pip install --constraint constraints.txt --build-constraint constraints.txt --no-deps . \
    && rm -rf /opt/imagegen/lib/python3.11/site-packages/torch/test /opt/imagegen/lib/python3.11/site-packages/torch/bin/protoc* \
    && if [ "$TORCH" = cpu ]; then rm -rf /opt/imagegen/lib/python3.11/site-packages/torch/include; fi

FROM python:3.11.15-slim-trixie
# For `compile` in models.yaml: Triton builds a small C module for each kernel. This image has Python's headers.
ARG TORCH=cpu
# hadolint ignore=DL3008
RUN if [ "$TORCH" = cuda ]; then \
        apt-get update \
        && apt-get install --yes --no-install-recommends gcc libc6-dev \
        && rm -rf /var/lib/apt/lists/*; \
    fi
RUN useradd --uid 10001 --user-group --home-dir /data --no-create-home imagegen \
    && install --directory --owner=imagegen --group=imagegen /data /models
COPY --from=build /opt/imagegen /opt/imagegen
# IMAGEGEN_FIRST_KEY: the first start makes an API key and prints it once: docker logs NAME | grep 'API key'
# Tasks and pictures are in /data, weights and the Hugging Face cache in /models. Everything else may be read-only, with a
# tmpfs at /tmp. XDG_CACHE_HOME: caches of libraries.
ENV PATH=/opt/imagegen/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    IMAGEGEN_HOST=0.0.0.0 \
    IMAGEGEN_PORT=5050 \
    IMAGEGEN_FIRST_KEY=admin \
    IMAGEGEN_DATA_DIR=/data \
    IMAGEGEN_MODELS_DIR=/models \
    HF_HOME=/models/.huggingface \
    XDG_CACHE_HOME=/data/cache
USER 10001:10001
WORKDIR /data
VOLUME ["/data", "/models"]
EXPOSE 5050
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 CMD ["imagegen", "health"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["imagegen"]
CMD ["serve"]
