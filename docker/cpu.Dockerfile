# docker build -f docker/cpu.Dockerfile -t mod-vision . && docker run --rm mod-vision demo
FROM python:3.11-slim AS wheel
WORKDIR /src
COPY . .
RUN pip install --no-cache-dir "build>=1.2" && python -m build --wheel --outdir /dist

FROM python:3.11-slim
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=wheel /dist /dist
RUN pip install --no-cache-dir torch torchvision --index-url https://download.pytorch.org/whl/cpu \
    && pip install --no-cache-dir "$(ls /dist/*.whl)[export]"
WORKDIR /data
ENTRYPOINT ["mod-vision"]
CMD ["check"]
