FROM busybox AS Build
RUN make
LABEL a=1
