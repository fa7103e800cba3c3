FROM scratch
WORKDIR /srv
COPY a b
COPY a .
COPY a ./
COPY a ..
COPY a ../x/
COPY a /
COPY a /abs/.
COPY a b/..
COPY ./dir/../c /d ../../outside /many/
COPY --chown=app:staff --chmod=0755 *.go src/
ADD archive.tar.gz /unpacked
ADD --chown=1 file /f
