FROM busybox
ARG NAME=world
RUN <<EOF
echo $NAME
echo again
EOF
RUN <<-'EOF'
	#!/usr/bin/env python3
	print("hi")
EOF
RUN cat <<A > /a && cat <<B > /b
first
A
second
B
COPY <<expanded <<'literal' /dir/
hello $NAME
expanded
hello $NAME
literal
