# docker build -f docker/cuda.Dockerfile -t mod-vision:cuda . && docker run --rm --gpus all --shm-size 8g mod-vision:cuda demo
FROM python:3.11-slim AS wheel
WORKDIR /src
COPY . .
RUN pip install --no-cache-dir "build>=1.2" && python -m build --wheel --outdir /dist

# the wheels of torch bring CUDA's libraries; the driver is the host's, by the NVIDIA Container Toolkit
FROM python:3.11-slim
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=wheel /dist /dist
RUN pip install --no-cache-dir torch torchvision \
    && pip install --no-cache-dir "$(ls /dist/*.whl)[export]"
WORKDIR /data
ENTRYPOINT ["mod-vision"]
CMD ["check"]
