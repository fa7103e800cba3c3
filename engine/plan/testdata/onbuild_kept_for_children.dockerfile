FROM triggers
ONBUILD RUN mine
ONBUILD CMD ["x"]
