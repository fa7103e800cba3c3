FROM scratch
MAINTAINER Ada <ada@example.org>
ENV A=1 B="two words"
ENV C $A-$B
LABEL org.example.version=$A "spaced key"="x y"
EXPOSE 80 443/TCP 8000-8002/udp 127.0.0.1:9000:9001
VOLUME ["/data", "/with space"]
USER app:staff
STOPSIGNAL SIGQUIT
SHELL ["/bin/ash", "-ec"]
HEALTHCHECK --interval=30s --retries=2 CMD wget -q localhost
CMD echo $A
ENTRYPOINT ["/app", "--serve"]
