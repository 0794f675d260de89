# taskedge with the HTTP server, on a processor:
#   docker build -t taskedge .    # --build-arg PIP_EXTRA_INDEX_URL=... names an index with smaller CPU builds of torch
#   docker run -p 8080:8080 -e TASKEDGE_TOKEN=secret -v ./tasks:/tasks -v ./base:/base:ro taskedge
#   docker run -v .:/work -w /work taskedge tune --model base --train train.csv --text text --label label
FROM python:3.12-slim AS build
WORKDIR /source
ARG PIP_EXTRA_INDEX_URL
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src src
RUN python -m venv /opt/taskedge \
    && /opt/taskedge/bin/pip install --no-cache-dir -c constraints.txt '.[fast,serve,device,onnx]'

FROM python:3.12-slim
COPY --from=build /opt/taskedge /opt/taskedge
RUN useradd --create-home taskedge && mkdir /tasks && chown taskedge /tasks
ENV PATH=/opt/taskedge/bin:$PATH HF_HOME=/home/taskedge/hub
USER taskedge
EXPOSE 8080
ENTRYPOINT ["taskedge"]
CMD ["serve", "--watch", "/tasks", "--model", "/base", "--host", "0.0.0.0", "--port", "8080"]
