FROM scratch AS tools
FROM triggers AS image
RUN after
FROM scratch AS stage
ONBUILD RUN from-stage
ONBUILD COPY --from=tools /t /t
ONBUILD ENV X=1
FROM stage
RUN own $X
COPY --from=image /i /i
