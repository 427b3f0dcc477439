# The course in a container:
#
#     docker build -t qsr . && docker run --rm -p 8888:8888 qsr
#
# With torch for CUDA: docker build --build-arg PIP_EXTRA_INDEX_URL= ...
FROM python:3.11-slim AS tools
RUN apt-get update && apt-get install -y --no-install-recommends g++ git make \
    && rm -rf /var/lib/apt/lists/*

FROM tools
ARG PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
RUN useradd --create-home student
USER student
WORKDIR /home/student/qsr
COPY --chown=student . .
RUN make classroom
EXPOSE 8888
CMD ["make", "lab", "ARGS=--ip=0.0.0.0 --no-browser"]
