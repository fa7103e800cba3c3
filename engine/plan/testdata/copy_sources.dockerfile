FROM busybox AS Tools
FROM alpine:3 AS other
FROM scratch AS unneeded
RUN never
FROM scratch
COPY --from=tools /bin/a /a
COPY --from=1 /b /b
COPY --from=busybox /c /c
COPY --from=scratch /none* /d/
COPY --from=TOOLS /bin/e /e
