FROM alpine:3 AS tools
FROM busybox
WORKDIR /src
ARG CACHE=mod
RUN --mount=target=. --mount=type=bind,source=conf,target=/conf,rw true
RUN --mount=from=tools,source=/bin,target=/t --mount=from=busybox,target=rel --mount=from=scratch,target=/s true
RUN --mount=type=cache,target=/c/ --mount=type=cache,id=$CACHE,target=m,sharing=locked,uid=5,gid=6,mode=1777,ro --mount=type=cache,from=tools,source=/x,target=/f true
RUN --mount=type=tmpfs,target=/tmp,size=64m true
RUN --mount=type=secret,id=token --mount=type=secret,id=key,target=k,required,mode=0440,uid=7,gid=8 --mount=type=secret,id=env,env=TOKEN true
RUN --network=none true
RUN --network=default true
