FROM busybox
WORKDIR relative
WORKDIR ..
WORKDIR /
RUN pwd
USER 1000:1000
WORKDIR /srv/$USER/app
ENV DIR=sub
WORKDIR $DIR
COPY a .
RUN --mount=type=cache,target=cache pwd
USER root
WORKDIR /
