FROM busybox AS inherited
ENTRYPOINT ["/new"]
FROM busybox AS kept
CMD ["own"]
ENTRYPOINT /new --shell
FROM busybox AS other
CMD ["from-stage"]
FROM other AS below
ENTRYPOINT ["/below"]
FROM scratch
COPY --from=inherited / /a
COPY --from=kept / /b
COPY --from=below / /c
